from __future__ import annotations

from pathlib import Path

import pytest

from store.catalog_file import (
    MAX_TOKENS,
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
    for positions in (0, MAX_TOKENS + 1, True, "40", None):
        with pytest.raises(CatalogError, match="context length"):
            model_limits(entry, {"max_position_embeddings": positions})
    unbounded = entry.model_copy(update={"max_output_tokens": None})
    for positions in (1, MAX_TOKENS):
        limits = model_limits(unbounded, {"max_position_embeddings": positions})
        assert limits == (positions, positions)
    longer = entry.model_copy(update={"context_length": 60})
    assert model_limits(longer, {"max_position_embeddings": 40}) == (60, 50)


@pytest.mark.parametrize(
    ("field", "least", "most"),
    [
        ("context_length = {}", 1, 2**31 - 1),
        ("max_output_tokens = {}", 1, 2**31 - 1),
        ("prices.x = {{ input_micros = {}, cached_micros = 1, output_micros = 1 }}", 0, 10**15),
    ],
)
def test_numbers_are_taken_up_to_their_bounds(
    tmp_path: Path, field: str, least: int, most: int
) -> None:
    def load(number: int) -> None:
        line = field.format(number)
        prices = PRICES if "prices" not in line else _with_price(line)
        more = "" if "prices" in line else f"{line}\n"
        load_catalog(_write(tmp_path / "c.toml", f"[models.a]\nsource = 'x'\n{more}{prices}"))

    for number in (least, most):
        load(number)
    for number in (least - 1, most + 1):
        with pytest.raises(CatalogError):
            load(number)


def _with_price(line: str) -> str:
    """All prices, with this one in the place of the default tier's."""
    others = [each for each in PRICES.splitlines() if "default" not in each]
    return "\n".join([*others, line.replace("prices.x", "prices.default")])


def test_the_first_mistake_is_told_and_how_many_more_there_are(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    one = f"[models.a]\nsource = 'x'\nsecret = 1\n{PRICES}"

    for text, end in ((one, "not permitted"), (f"other = 1\n{one}", "(and 1 more)")):
        with pytest.raises(CatalogError) as raised:
            load_catalog(_write(path, text))
        assert str(raised.value).startswith(f"{path}: models.a.secret: ")
        assert str(raised.value).endswith(end)


def test_a_model_has_the_defaults_the_documents_name(tmp_path: Path) -> None:
    text = f"[models.a]\nsource = 'x'\n{PRICES}"

    catalog = load_catalog(_write(tmp_path / "c.toml", text))

    entry = catalog.models["a"]
    assert catalog.currency == "USD"
    assert catalog.folders == {"a": tmp_path}
    assert (entry.pool, entry.dtype, entry.revision) == ("default", "auto", None)
    assert (entry.context_length, entry.max_output_tokens) == (None, None)
    assert entry.capabilities == ["chat"]
    assert catalog.price_rows() == [
        ("a", "batch", 1, 1, 2),
        ("a", "default", 3, 1, 6),
        ("a", "flex", 2, 1, 4),
        ("a", "priority", 4, 1, 8),
    ]


def test_a_tier_that_does_not_exist_is_named(tmp_path: Path) -> None:
    more = "prices.slow = { input_micros = 1, cached_micros = 1, output_micros = 1 }"
    text = f"[models.a]\nsource = 'x'\n{PRICES}{more}\n"

    with pytest.raises(CatalogError, match="unknown tier: slow"):
        load_catalog(_write(tmp_path / "c.toml", text))


def test_models_of_earlier_files_stay_beside_later_ones(tmp_path: Path) -> None:
    one, two = (
        load_catalog(_write(tmp_path / f"{name}.toml", f"[models.{name}]\nsource = 'x'\n{PRICES}"))
        for name in "ab"
    )

    merged = merge_catalogs([one, two])

    assert set(merged.models) == set(merged.folders) == {"a", "b"}
    assert merged.currency == "USD"


def test_a_price_book_is_told_apart_by_version_currency_and_prices(tmp_path: Path) -> None:
    text = f"[models.a]\nsource = 'x'\n{PRICES}"
    one, euro, dearer, same = (
        load_catalog(_write(tmp_path / "c.toml", each))
        for each in (
            text,
            f"currency = 'EUR'\n{text}",
            text.replace("= 8 ", "= 9 "),
            text.replace("'x'", "'y'"),
        )
    )

    assert len({price_book_hash(1, one), price_book_hash(1, euro), price_book_hash(1, dearer)}) == 3
    assert price_book_hash(1, one) == price_book_hash(1, same)
