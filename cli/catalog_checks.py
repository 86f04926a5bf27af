"""What `catalog apply` and `make up` refuse because no worker could serve it. Without torch."""

from __future__ import annotations

from store.catalog_file import CatalogError
from store.model_assets import ReadFile
from workers.inference.engine.checkpoint import check_checkpoint
from workers.inference.engine.errors import EngineError, reason_of


def check_model(read: ReadFile, dtype: str) -> None:
    """Raises CatalogError, as store.catalog.CheckModel may."""
    try:
        check_checkpoint(read, dtype)
    except EngineError as error:
        raise CatalogError(reason_of(error)) from error
