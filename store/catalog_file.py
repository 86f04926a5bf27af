"""`catalog.toml`, pure: which models there are, where their files lie, what they cost.

A mistake in a file is reported as one line that names the file and the entry.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tasks.queues import ServiceTier

Micros = Annotated[int, Field(ge=0, le=10**15)]  # per million tokens
ModelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/:-]{0,127}$")]
MAX_TOKENS = 2**31 - 1  # of a context: what a column holds
# A pool is one part of a queue's name, whose parts are separated by dots.
PoolName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]


class CatalogError(Exception):
    """The catalog can't be used. The message is one line for the operator."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class TierPrices(_Strict):
    """What a million tokens cost in one service tier."""

    input_micros: Micros
    cached_micros: Micros
    output_micros: Micros


class CatalogModel(_Strict):
    """One model. Without `context_length` its config.json decides."""

    pool: PoolName = "default"
    source: str = Field(min_length=1)  # hub id, or a folder: absolute or beside the catalog file
    revision: str | None = None
    dtype: Literal["auto", "fp32", "bf16", "fp16", "int8", "nf4"] = "auto"
    context_length: int | None = Field(default=None, ge=1, le=MAX_TOKENS)
    max_output_tokens: int | None = Field(default=None, ge=1, le=MAX_TOKENS)
    capabilities: list[Literal["chat", "completion"]] = Field(default=["chat"], min_length=1)
    prices: dict[str, TierPrices]

    @model_validator(mode="after")
    def _prices_for_each_tier(self) -> CatalogModel:
        if missing := [tier.value for tier in ServiceTier if tier.value not in self.prices]:
            raise ValueError(f"no prices for tier {', '.join(missing)}")
        if unknown := set(self.prices) - {tier.value for tier in ServiceTier}:
            raise ValueError(f"prices for an unknown tier: {', '.join(sorted(unknown))}")
        return self


class _File(_Strict):
    currency: str = Field(default="USD", pattern=r"^[A-Z]{3}$")
    models: dict[ModelName, CatalogModel] = Field(min_length=1)


@dataclass(frozen=True, slots=True)
class Catalog:
    """What one or more catalog files say together."""

    currency: str
    models: Mapping[str, CatalogModel]
    folders: Mapping[str, Path]  # of the file each model stands in; relative sources begin there

    def price_rows(self) -> list[tuple[str, str, int, int, int]]:
        """Model, tier, and micros per million of input, cached and output tokens; sorted."""
        return sorted(
            (name, tier, price.input_micros, price.cached_micros, price.output_micros)
            for name, model in self.models.items()
            for tier, price in model.prices.items()
        )


def load_catalog(path: Path) -> Catalog:
    """Read one file. Raises CatalogError."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CatalogError(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CatalogError(f"{path}: not TOML: {error}") from error
    try:
        file = _File.model_validate(document)
    except ValidationError as error:
        raise CatalogError(f"{path}: {_first_mistake(error)}") from error
    return Catalog(file.currency, file.models, dict.fromkeys(file.models, path.resolve().parent))


def merge_catalogs(catalogs: Iterable[Catalog]) -> Catalog:
    """One catalog of several; of two models with one name the later file's counts."""
    first, *others = catalogs
    models, folders = dict(first.models), dict(first.folders)
    for other in others:
        if other.currency != first.currency:
            raise CatalogError(f"catalogs in {first.currency} and {other.currency} can't be merged")
        models |= other.models
        folders |= other.folders
    return Catalog(first.currency, models, folders)


def price_book_hash(version: int, catalog: Catalog) -> bytes:
    """Identifies a price book. The version counts, so that prices may return to earlier ones."""
    document = {"version": version, "currency": catalog.currency, "prices": catalog.price_rows()}
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).digest()


def resolve_source(source: str, folder: Path) -> Path | None:
    """The folder a source names, or None: then it is a hub id."""
    path = folder / source
    if path.is_dir():
        return path.resolve()
    # A hub id is `owner/name`; anything else can only be a folder, and it is missing.
    if Path(source).is_absolute() or source.startswith(".") or source.count("/") != 1:
        raise CatalogError(f"there is no folder {path}")
    return None


def model_limits(entry: CatalogModel, config: Mapping[str, object] | None) -> tuple[int, int]:
    """(context_length, max_output_tokens) of a model. Raises CatalogError if nothing says it."""
    context_length = entry.context_length
    if context_length is None:
        positions = (config or {}).get("max_position_embeddings")
        if type(positions) is not int or not 1 <= positions <= MAX_TOKENS:
            raise CatalogError("neither the catalog nor config.json says its context length")
        context_length = positions
    return context_length, min(entry.max_output_tokens or context_length, context_length)


def _first_mistake(error: ValidationError) -> str:
    mistake = error.errors()[0]
    where = ".".join(str(part) for part in mistake["loc"])
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{where}: {mistake['msg']}{more}"
