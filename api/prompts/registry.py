"""The models this process can serve prompts for: catalog rows with their tokenizers, kept fresh."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass

import structlog
from psycopg import Error as DatabaseError

from api.grammars.process import TokenizerFile
from api.prompts.codec import PromptCodec
from api.prompts.template import special_tokens
from api.settings import CATALOG_REFRESH_S
from store.catalog import ModelEntry, load_assets, load_models
from store.model_assets import TOKENIZER, TOKENIZER_CONFIG
from store.pools import AsyncPool
from tasks.errors import ModelNotFound, ServiceUnavailable

log = structlog.get_logger(__name__)

_MIN_REFRESH_INTERVAL_S = 1.0


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model of the catalog, ready to read prompts."""

    entry: ModelEntry
    codec: PromptCodec


class ModelRegistry:
    """A snapshot of the catalog, replaced as a whole. Used on the event loop alone."""

    def __init__(self, pool: AsyncPool) -> None:
        self._pool = pool
        self._models: Mapping[str, ServedModel] = {}
        self._loaded_at: float | None = None
        self._lock = asyncio.Lock()

    def list(self) -> list[ServedModel]:
        """All models, by name."""
        return list(self._models.values())

    def find(self, name: str) -> ServedModel | None:
        """A model by name, if the snapshot has it."""
        return self._models.get(name)

    async def get(self, name: str) -> ServedModel:
        """A model by name. Looks into Postgres before it says no. Raises ModelNotFound."""
        if name not in self._models:
            await self.refresh(min_interval_s=_MIN_REFRESH_INTERVAL_S)
        try:
            return self._models[name]
        except KeyError:
            raise ModelNotFound(param="model") from None

    def tokenizer_file(self, model: ServedModel) -> TokenizerFile:
        """What reads grammars for a model. Its text is large, so it isn't kept here."""

        async def read() -> tuple[str, str | None]:
            assets = await load_assets(self._pool, model.entry.name)
            if TOKENIZER not in assets:  # the catalog has changed since
                raise ModelNotFound(param="model")
            config = json.loads(assets.get(TOKENIZER_CONFIG, b"{}"))
            return assets[TOKENIZER].decode(), special_tokens(config).get("eos_token")

        return TokenizerFile(model.entry.asset_hashes[TOKENIZER].hex(), read)

    async def refresh(self, *, min_interval_s: float = 0.0) -> None:
        """Bring the snapshot up to date. Raises ServiceUnavailable if there has never been one."""
        async with self._lock:
            if self._loaded_at and time.monotonic() - self._loaded_at < min_interval_s:
                return
            try:
                self._models = await self._load()
                self._loaded_at = time.monotonic()
            except DatabaseError as error:
                log.warning("catalog_not_refreshed", error=type(error).__name__)
                if self._loaded_at is None:
                    raise ServiceUnavailable from error

    async def keep_fresh(self) -> None:
        """Refresh for ever. A failure waits for the next turn."""
        while True:
            try:
                await self.refresh()
            except ServiceUnavailable:
                pass  # logged by refresh
            except Exception:
                log.exception("catalog_refresh_failed")  # the task must outlive a bad asset
            await asyncio.sleep(CATALOG_REFRESH_S)

    async def _load(self) -> Mapping[str, ServedModel]:
        models = {}
        for entry in await load_models(self._pool):
            try:
                models[entry.name] = ServedModel(entry, await self._codec(entry))
            except DatabaseError:
                raise
            except Exception:
                # tokenizers raises bare Exception. One broken model must not take the others down.
                log.exception("model_not_loaded", model=entry.name)
        return models

    async def _codec(self, entry: ModelEntry) -> PromptCodec:
        known = self._models.get(entry.name)
        if known and known.entry.asset_hashes == entry.asset_hashes:
            return known.codec
        assets = await load_assets(self._pool, entry.name)
        return await asyncio.to_thread(PromptCodec, assets)
