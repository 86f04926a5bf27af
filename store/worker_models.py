"""The models a worker loads: those of its pool that the catalog has active."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from psycopg.rows import class_row

from store.pools import DictConnection


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerModel:
    """A model as the worker needs it. `source` is a folder or a hub id."""

    name: str
    source: str
    revision: str | None
    dtype: Literal["auto", "fp32", "bf16", "fp16", "int8", "nf4"]
    context_length: int


def list_worker_models(connection: DictConnection, pool: str) -> list[WorkerModel]:
    """Active models of a pool, by name."""
    with connection.cursor(row_factory=class_row(WorkerModel)) as cursor:
        return cursor.execute(
            "SELECT name, source, revision, dtype, context_length FROM models"
            " WHERE pool = %s AND status = 'active' ORDER BY name",
            (pool,),
        ).fetchall()
