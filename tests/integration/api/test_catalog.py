from __future__ import annotations

from pathlib import Path

import pytest

from store.catalog import apply_catalog
from store.catalog_file import CatalogError
from store.pools import DictConnection


def test_applying_twice_changes_nothing(owner: DictConnection, catalog_file: Path) -> None:
    first = apply_catalog(owner, catalog_file)
    second = apply_catalog(owner, catalog_file)

    assert (first.price_version, first.is_new_price_version) == (1, True)
    assert (second.price_version, second.is_new_price_version) == (1, False)
    assert second.retired == ()
    kinds = owner.execute("SELECT kind FROM model_assets ORDER BY kind").fetchall()
    assert [row["kind"] for row in kinds] == ["chat_template", "tokenizer", "tokenizer_config"]


def test_changed_prices_make_a_version_and_may_change_back(
    owner: DictConnection, catalog_file: Path
) -> None:
    dearer = catalog_file.with_name("dearer.toml")
    dearer.write_text(catalog_file.read_text().replace("8000000", "9000000"))

    versions = [
        apply_catalog(owner, path).price_version for path in (catalog_file, dearer, catalog_file)
    ]

    assert versions == [1, 2, 3]


def test_model_that_is_no_longer_listed_retires_and_may_return(
    owner: DictConnection, catalog_file: Path
) -> None:
    other = catalog_file.with_name("other.toml")
    other.write_text(catalog_file.read_text().replace("models.tiny", "models.other"))
    apply_catalog(owner, catalog_file)

    retired = apply_catalog(owner, other).retired
    both = apply_catalog(owner, [catalog_file, other])

    assert retired == ("tiny",)
    assert both.models == ("other", "tiny")
    rows = owner.execute("SELECT name FROM models WHERE status = 'active' ORDER BY name")
    assert [row["name"] for row in rows.fetchall()] == ["other", "tiny"]


def test_catalog_with_a_mistake_changes_nothing(owner: DictConnection, catalog_file: Path) -> None:
    broken = catalog_file.with_name("broken.toml")
    broken.write_text(
        catalog_file.read_text()
        + catalog_file.read_text().replace("models.tiny", "models.two").replace('"tiny"', '"gone"')
    )

    with pytest.raises(CatalogError, match="model two: there is no folder"):
        apply_catalog(owner, broken)

    assert owner.execute("SELECT name FROM models").fetchall() == []
