from __future__ import annotations

from pathlib import Path

import pytest

from store.catalog_file import (
    CatalogError,
    load_catalog,
    merge_catalogs,
    model_limits,
    price_book_hash,
    resolve_source,
)

ROOT = Path(__file__).resolve().parents[3]

PRICES = """
prices.priority = { input_micros = 4, cached_micros = 1, output_micros = 8 }
prices.default = { input_micros = 3, cached_micros = 1, output_micros = 6 }
prices.flex = { input_micros = 2, cached_micros = 1, output_micros = 4 }
prices.batch = { input_micros = 1, cached_micros = 1, output_micros = 2 }
"""


def _write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_the_catalog_of_the_repository_is_valid_and_dearer_tiers_cost_more() -> None:
    catalog = load_catalog(ROOT / "catalog.toml")

    assert set(catalog.models) == {"demo", "demo-mini"}
    for model in catalog.models.values():
        outputs = [
            model.prices[tier].output_micros for tier in ("priority", "default", "flex", "batch")
        ]
        assert outputs == sorted(set(outputs), reverse=True)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "models"),
        ("[[", "not TOML"),
        ("[models.a]\nsource = 'x'\n", "prices"),
        (f"[models.a]\nsource = 'x'\npool = 'a.b'\n{PRICES}", "pool"),
        (f"[models.a]\nsource = 'x'\ndtype = 'int3'\n{PRICES}", "dtype"),
        (f"[models.a]\nsource = 'x'\nsecret = 1\n{PRICES}", "secret"),
        (f"[models.a]\nsource = 'x'\n{PRICES.replace('flex', 'slow')}", "flex"),
        (f"[models.a]\nsource = 'x'\n{PRICES.replace('= 4,', '= -4,')}", "input_micros"),
        (f"[models.'a b']\nsource = 'x'\n{PRICES}", "models"),
    ],
)
def test_mistake_is_one_line_with_file_and_place(tmp_path: Path, text: str, words: str) -> None:
    path = _write(tmp_path / "c.toml", text)

    with pytest.raises(CatalogError) as raised:
        load_catalog(path)

    message = str(raised.value)
    assert message.startswith(str(path))
    assert words in message
    assert "\n" not in message


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="No such file"):
        load_catalog(tmp_path / "none.toml")


def test_later_file_wins_and_keeps_its_own_folder(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    text = f"[models.a]\nsource = 'x'\n{PRICES}"
    one = load_catalog(_write(tmp_path / "one.toml", text))
    two = load_catalog(_write(tmp_path / "other/two.toml", text.replace("'x'", "'y'")))

    merged = merge_catalogs([one, two])

    assert merged.models["a"].source == "y"
    assert merged.folders["a"] == tmp_path / "other"


def test_two_currencies_do_not_mix(tmp_path: Path) -> None:
    text = f"[models.a]\nsource = 'x'\n{PRICES}"
    one = load_catalog(_write(tmp_path / "one.toml", text))
    two = load_catalog(_write(tmp_path / "two.toml", f"currency = 'EUR'\n{text}"))

    with pytest.raises(CatalogError, match="EUR"):
        merge_catalogs([one, two])


def test_prices_may_return_to_earlier_ones(tmp_path: Path) -> None:
    catalog = load_catalog(_write(tmp_path / "c.toml", f"[models.a]\nsource = 'x'\n{PRICES}"))

    assert price_book_hash(1, catalog) != price_book_hash(3, catalog)


def test_source_is_a_folder_or_a_hub_id(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()

    assert resolve_source("m", tmp_path) == tmp_path / "m"
    assert resolve_source("owner/name", tmp_path) is None
    for missing in ("./n", "/nowhere/n", "models/demo/n", "n"):
        with pytest.raises(CatalogError, match="no folder"):
            resolve_source(missing, tmp_path)


def test_limits_come_from_the_catalog_else_from_the_model(tmp_path: Path) -> None:
    text = f"[models.a]\nsource = 'x'\nmax_output_tokens = 50\n{PRICES}"
    entry = load_catalog(_write(tmp_path / "c.toml", text)).models["a"]

    assert model_limits(entry, {"max_position_embeddings": 40}) == (40, 40)
    assert model_limits(entry, {"max_position_embeddings": 400}) == (400, 50)
    with pytest.raises(CatalogError):
        model_limits(entry, None)
