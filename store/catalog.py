"""Models, their assets and prices in Postgres: `catalog apply` writes them, the API reads them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from store.catalog_file import (
    Catalog,
    CatalogError,
    CatalogModel,
    load_catalog,
    merge_catalogs,
    model_limits,
    price_book_hash,
    resolve_source,
)
from store.model_assets import ReadFile, open_model, read_model_files
from store.pools import AsyncPool, DictConnection

# Reads a model's files and raises CatalogError for one that can't be served in this dtype. Without
# a folder it is one of the hub.
CheckModel = Callable[[ReadFile, str, Path | None], None]

# Two operators applying at once would race for the next price book version.
_APPLY_LOCK = 0x6D6C7201


@dataclass(frozen=True, slots=True)
class CatalogSummary:
    """What `apply_catalog` did."""

    models: tuple[str, ...]
    retired: tuple[str, ...]
    price_version: int
    is_new_price_version: bool


@dataclass(frozen=True, slots=True)
class Price:
    """Micros per million tokens in one service tier."""

    input_micros: int
    cached_micros: int
    output_micros: int


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """An active model as the API sees it."""

    name: str
    pool: str
    context_length: int
    max_output_tokens: int
    capabilities: frozenset[str]
    created_at: datetime
    asset_hashes: Mapping[str, bytes]
    price_version: int
    currency: str
    prices: Mapping[str, Price]  # by service tier
    refusal: str | None = None  # why no worker can serve it, one line; None while one may


def apply_catalog(
    connection: DictConnection, paths: Path | Iterable[Path], *, check: CheckModel | None = None
) -> CatalogSummary:
    """Make the database say what the files say. Idempotent. On a CatalogError nothing has changed.

    Of several files, later ones win. Models in none of them retire. `check` refuses a model that no
    worker could serve: the catalog knows nothing of engines.
    """
    files = [paths] if isinstance(paths, Path) else list(paths)
    catalog = merge_catalogs(load_catalog(path) for path in files)
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_APPLY_LOCK,))
        for name, entry in catalog.models.items():
            _apply_model(connection, name, entry, catalog.folders[name], check)
        retired = _retire_others(connection, list(catalog.models))
        version, is_new = _apply_prices(connection, catalog)
    return CatalogSummary(tuple(sorted(catalog.models)), retired, version, is_new)


async def load_models(pool: AsyncPool) -> list[ModelEntry]:
    """All active models with the current prices, by name."""
    async with pool.connection() as connection:
        cursor = await connection.execute(_LOAD_MODELS)
        rows = await cursor.fetchall()
    return [
        ModelEntry(
            **row
            | {
                "capabilities": frozenset(row["capabilities"]),
                "asset_hashes": {k: bytes.fromhex(v) for k, v in row["asset_hashes"].items()},
                "prices": {tier: Price(**price) for tier, price in row["prices"].items()},
            }
        )
        for row in rows
    ]


async def load_assets(pool: AsyncPool, model: str) -> dict[str, bytes]:
    """The files of one model by kind."""
    async with pool.connection() as connection:
        cursor = await connection.execute(
            "SELECT kind, content FROM model_assets WHERE model_name = %s", (model,)
        )
        return {row["kind"]: bytes(row["content"]) for row in await cursor.fetchall()}


_LOAD_MODELS = """
    SELECT m.name, m.pool, m.context_length, m.max_output_tokens, m.capabilities, m.created_at,
        b.version AS price_version, b.currency,
        (SELECT coalesce(jsonb_object_agg(kind, encode(sha256, 'hex')), '{}')
            FROM model_assets WHERE model_name = m.name) AS asset_hashes,
        (SELECT coalesce(jsonb_object_agg(service_tier, jsonb_build_object(
                'input_micros', input_micros, 'cached_micros', cached_micros,
                'output_micros', output_micros)), '{}')
            FROM prices WHERE version = b.version AND model_name = m.name) AS prices,
        (SELECT CASE WHEN NOT bool_or(m.name = ANY(models)) THEN max(refused ->> m.name) END
            FROM worker_leases l
            WHERE l.pool = m.pool AND expires_at > now() AND NOT draining) AS refusal
    FROM models m, (SELECT * FROM price_books ORDER BY version DESC LIMIT 1) b
    WHERE m.status = 'active'
    ORDER BY m.name
"""


def _apply_model(
    connection: DictConnection,
    name: str,
    entry: CatalogModel,
    folder: Path,
    check: CheckModel | None,
) -> None:
    try:
        source = resolve_source(entry.source, folder)
        read = open_model(entry.source, source, entry.revision)
        if check is not None:
            check(read, entry.dtype, source)
        files = read_model_files(entry.source, read)
        context_length, max_output_tokens = model_limits(entry, files.config)
    except CatalogError as error:
        raise CatalogError(f"model {name}: {error}") from error
    connection.execute(
        _UPSERT_MODEL,
        {
            **entry.model_dump(exclude={"prices"}),
            "name": name,
            "context_length": context_length,
            "max_output_tokens": max_output_tokens,
        },
    )
    _replace_assets(connection, name, files.assets)


_UPSERT_MODEL = """
    INSERT INTO models AS m (name, pool, source, revision, dtype, context_length, max_output_tokens,
        status, capabilities)
    VALUES (%(name)s, %(pool)s, %(source)s, %(revision)s, %(dtype)s, %(context_length)s,
        %(max_output_tokens)s, 'active', %(capabilities)s)
    ON CONFLICT (name) DO UPDATE SET pool = excluded.pool, source = excluded.source,
        revision = excluded.revision, dtype = excluded.dtype,
        context_length = excluded.context_length, max_output_tokens = excluded.max_output_tokens,
        status = 'active', capabilities = excluded.capabilities, updated_at = now()
"""


def _replace_assets(connection: DictConnection, name: str, assets: Mapping[str, bytes]) -> None:
    connection.execute(
        "DELETE FROM model_assets WHERE model_name = %s AND NOT kind = ANY(%s)",
        (name, list(assets)),
    )
    for kind, content in assets.items():
        connection.execute(
            "INSERT INTO model_assets AS a (model_name, kind, sha256, content)"
            " VALUES (%s, %s, %s, %s) ON CONFLICT (model_name, kind) DO UPDATE"
            " SET sha256 = excluded.sha256, content = excluded.content"
            " WHERE a.sha256 <> excluded.sha256",
            (name, kind, hashlib.sha256(content).digest(), content),
        )


def _retire_others(connection: DictConnection, names: list[str]) -> tuple[str, ...]:
    rows = connection.execute(
        "UPDATE models SET status = 'retired', updated_at = now()"
        " WHERE status = 'active' AND NOT name = ANY(%s) RETURNING name",
        (names,),
    ).fetchall()
    return tuple(sorted(row["name"] for row in rows))


def _apply_prices(connection: DictConnection, catalog: Catalog) -> tuple[int, bool]:
    current = connection.execute(
        "SELECT version, sha256 FROM price_books ORDER BY version DESC LIMIT 1"
    ).fetchone()
    if current and bytes(current["sha256"]) == price_book_hash(current["version"], catalog):
        return current["version"], False
    version = current["version"] + 1 if current else 1
    connection.execute(
        "INSERT INTO price_books (version, currency, sha256) VALUES (%s, %s, %s)",
        (version, catalog.currency, price_book_hash(version, catalog)),
    )
    with connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO prices (version, model_name, service_tier, input_micros, cached_micros,"
            " output_micros) VALUES (%s, %s, %s, %s, %s, %s)",
            [(version, *row) for row in catalog.price_rows()],
        )
    return version, True
