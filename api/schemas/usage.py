"""Reports of usage and costs, for the OpenAPI document; see api/schemas/objects.py."""

from __future__ import annotations

from typing import Generic, Literal, TypeVar

from api.schemas.objects import Shown
from tasks.jobs import JobStatus, Payer
from tasks.queues import ServiceTier

T = TypeVar("T")


class UsageResultShown(Shown):
    """OpenAI's usage of completions. Grouping fields are null unless grouped by."""

    object: Literal["organization.usage.completions.result"]
    input_tokens: int
    input_cached_tokens: int
    input_uncached_tokens: int
    input_text_tokens: int
    input_cached_text_tokens: int
    input_audio_tokens: int
    input_image_tokens: int
    input_cached_audio_tokens: int
    input_cached_image_tokens: int
    input_cache_write_tokens: int
    input_cache_write_30m_tokens: int
    input_cache_write_12h_tokens: int
    output_tokens: int
    output_text_tokens: int
    output_audio_tokens: int
    output_image_tokens: int
    num_model_requests: int
    project_id: str | None
    user_id: str | None
    api_key_id: str | None
    model: str | None
    batch: bool | None
    service_tier: ServiceTier | None
    api_source: None


class AmountShown(Shown):
    """Money in units of a currency."""

    value: float
    currency: str


class CostResultShown(Shown):
    """OpenAI's costs. Grouping fields are null unless grouped by."""

    object: Literal["organization.costs.result"]
    amount: AmountShown
    line_item: str | None
    quantity: int | None
    quantity_unit: Literal["tokens"] | None
    project_id: str | None
    user_id: str | None
    api_key_id: str | None
    api_source: None


class BucketShown(Shown, Generic[T]):
    """What ended in [start_time, end_time)."""

    object: Literal["bucket"]
    start_time: int
    end_time: int
    results: list[T]


class BucketPageShown(Shown, Generic[T]):
    """Some buckets of a report."""

    object: Literal["page"]
    data: list[BucketShown[T]]
    has_more: bool
    next_page: str | None


class JobUsageShown(Shown):
    """What one settled job used."""

    id: str
    object: Literal["usage.job"]
    created_at: int
    finished_at: int
    model: str
    service_tier: ServiceTier
    status: JobStatus
    payer: Payer
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    amount_micros: int
    currency: str
    end_user: str | None
    api_key_id: str
