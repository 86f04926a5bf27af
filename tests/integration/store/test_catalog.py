"""What a catalog leaves in the database: each model's own files, limits and prices."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from store import catalog
from store.catalog import CatalogSummary, ModelEntry, Price, apply_catalog
from tests.integration.store.conftest import AsApi
from tests.support.rows import Rows

TIERS = ("priority", "default", "flex", "batch")


def _catalog(folder: Path, *names: str, factor: int = 1, **fields: str) -> Path:
    """Of models in folders of their own; the n-th costs (n, n + 1, n + 2) in each tier."""
    text = ""
    for number, name in enumerate(names, start=1):
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "tokenizer.json").write_text(f'"{name}"')
        text += f"[models.{name}]\nsource = '{name}'\ncontext_length = {number * 100}\n"
        text += "".join(f"{key} = {value}\n" for key, value in fields.items())
        micros = [(number + place) * factor for place in range(3)]
        price = "{{ input_micros = {}, cached_micros = {}, output_micros = {} }}".format(*micros)
        text += "".join(f"prices.{tier} = {price}\n" for tier in TIERS)
    (folder / "catalog.toml").write_text(text)
    return folder / "catalog.toml"


def _models(as_api: AsApi) -> list[ModelEntry]:
    return as_api(catalog.load_models)


def _assets(rows: Rows) -> list[dict[str, Any]]:
    return rows.connection.execute(
        "SELECT *, xmin::text FROM model_assets ORDER BY model_name, kind"
    ).fetchall()


def test_each_model_is_loaded_with_its_own_files_and_current_prices(
    as_api: AsApi, rows: Rows, tmp_path: Path
) -> None:
    apply_catalog(rows.connection, _catalog(tmp_path, "b", "a", factor=9))
    (tmp_path / "a" / "chat_template.jinja").write_text("x")
    summary = apply_catalog(rows.connection, _catalog(tmp_path, "b", "a", max_output_tokens="150"))

    assert summary == CatalogSummary(("a", "b"), (), 2, is_new_price_version=True)
    a, b = _models(as_api)
    hashes = {"tokenizer": hashlib.sha256(b'"a"').digest()}
    assert a == ModelEntry(
        name="a",
        pool="default",
        context_length=200,
        max_output_tokens=150,
        capabilities=frozenset({"chat"}),
        created_at=a.created_at,
        asset_hashes=hashes | {"chat_template": hashlib.sha256(b"x").digest()},
        price_version=2,
        currency="USD",
        prices=dict.fromkeys(TIERS, Price(2, 3, 4)),
    )
    assert (b.name, b.context_length, b.max_output_tokens) == ("b", 100, 100)
    assert b.asset_hashes == {"tokenizer": hashlib.sha256(b'"b"').digest()}
    assert b.prices == dict.fromkeys(TIERS, Price(1, 2, 3))
    assets = as_api(lambda pool: catalog.load_assets(pool, "a"))
    assert assets == {"tokenizer": b'"a"', "chat_template": b"x"}


def test_only_files_that_are_others_are_written_and_those_that_are_gone_go(
    rows: Rows, tmp_path: Path
) -> None:
    path = _catalog(tmp_path, "a", "b")
    for name in ("a", "b"):
        (tmp_path / name / "chat_template.jinja").write_text("x")
    apply_catalog(rows.connection, path)
    before = _assets(rows)
    apply_catalog(rows.connection, path)
    assert _assets(rows) == before

    (tmp_path / "a" / "chat_template.jinja").unlink()
    (tmp_path / "b" / "chat_template.jinja").write_text("new")
    apply_catalog(rows.connection, path)

    after = _assets(rows)
    assert [(row["model_name"], row["kind"]) for row in after] == [
        ("a", "tokenizer"),
        ("b", "chat_template"),
        ("b", "tokenizer"),
    ]
    assert (after[0], after[2]) == (before[1], before[3])
    changed = after[1]
    assert (bytes(changed["content"]), bytes(changed["sha256"])) == (
        b"new",
        hashlib.sha256(b"new").digest(),
    )


def test_what_is_retired_is_loaded_no_more_and_touched_once(
    as_api: AsApi, rows: Rows, tmp_path: Path
) -> None:
    apply_catalog(rows.connection, _catalog(tmp_path, "a", "b", "c"))
    first = apply_catalog(rows.connection, _catalog(tmp_path, "b"))
    again = apply_catalog(rows.connection, _catalog(tmp_path, "b"))

    assert (first.models, first.retired, again.retired) == (("b",), ("a", "c"), ())
    assert (first.price_version, again.price_version) == (2, 2)
    assert [model.name for model in _models(as_api)] == ["b"]


@pytest.mark.parametrize(
    ("is_draining", "expires_in", "pool", "refusal"),
    [
        (False, "1 minute", "default", "too large"),
        (True, "1 minute", "default", None),
        (False, "-1 s", "default", None),
        (False, "1 minute", "other", None),
    ],
)
def test_a_model_is_refused_by_workers_that_live_and_are_of_its_pool(  # noqa: PLR0917
    as_api: AsApi,
    rows: Rows,
    tmp_path: Path,
    is_draining: bool,
    expires_in: str,
    pool: str,
    refusal: str | None,
) -> None:
    apply_catalog(rows.connection, _catalog(tmp_path, "a", "b"))
    worker = rows.worker(pool=pool)
    rows.connection.execute(
        "UPDATE worker_leases SET models = '{b}', refused = '{\"a\": \"too large\"}',"
        " draining = %s, expires_at = now() + %s::interval WHERE worker_id = %s",
        (is_draining, expires_in, worker),
    )

    assert [model.refusal for model in _models(as_api)] == [refusal, None]
    if refusal:
        other = rows.worker(pool=pool)
        rows.connection.execute(
            "UPDATE worker_leases SET models = '{a}' WHERE worker_id = %s", (other,)
        )
        assert [model.refusal for model in _models(as_api)] == [None, None]
