"""OpenAI's result objects, with every field of its types: what Millrace can't have is 0 or null.

A tenant is what OpenAI calls a project; a job's `user` is its user id.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import orjson

from api.reports.pages import BucketPage

MICROS = 1_000_000

# Of media that no model here takes, and of caches that are written to for a price.
_OTHER_TOKENS = (
    "input_audio_tokens",
    "input_image_tokens",
    "input_cached_audio_tokens",
    "input_cached_image_tokens",
    "input_cache_write_tokens",
    "input_cache_write_30m_tokens",
    "input_cache_write_12h_tokens",
    "output_audio_tokens",
    "output_image_tokens",
)

Row = Mapping[str, Any]
Result = dict[str, Any]


USAGE_COLUMNS = (
    *("start_time", "end_time", "project_id", "user_id", "api_key_id", "model", "batch"),
    *("service_tier", "num_model_requests", "input_tokens", "input_cached_tokens", "output_tokens"),
)
COST_COLUMNS = (
    *("start_time", "end_time", "project_id", "user_id", "api_key_id", "line_item", "quantity"),
    *("amount", "currency"),
)


def buckets(page: BucketPage, rows: Iterable[Row], show: Callable[[Row], Result]) -> list[Result]:
    """The buckets of a page with their results."""
    results: dict[int, list[Result]] = {start: [] for start in page.starts}
    for row in rows:
        results[int(row["bucket"].timestamp())].append(show(row))
    return [
        {
            "object": "bucket",
            "start_time": start,
            "end_time": min(start + page.width_s, page.end),
            "results": of_bucket,
        }
        for start, of_bucket in results.items()
    ]


def usage_result(project: str | None, row: Row) -> Result:
    """Of what isn't grouped by, the field is null."""
    cached_tokens = row["input_cached_tokens"]
    fresh_tokens = row["input_tokens"] - cached_tokens
    return {
        "object": "organization.usage.completions.result",
        "input_tokens": row["input_tokens"],
        "input_cached_tokens": cached_tokens,
        "input_uncached_tokens": fresh_tokens,
        "input_text_tokens": fresh_tokens,
        "input_cached_text_tokens": cached_tokens,
        "output_tokens": row["output_tokens"],
        "output_text_tokens": row["output_tokens"],
        **dict.fromkeys(_OTHER_TOKENS, 0),
        "num_model_requests": row["num_model_requests"],
        "project_id": project,
        "user_id": row.get("user_id"),
        "api_key_id": row.get("api_key_id"),
        "model": row.get("model"),
        "batch": row.get("batch"),
        "service_tier": row.get("service_tier"),
        "api_source": None,
    }


def cost_result(project: str | None, row: Row) -> Result:
    """Quantities are tokens, of one line item."""
    return {
        "object": "organization.costs.result",
        "amount": {
            "value": orjson.Fragment(units(row["amount_micros"])),
            "currency": row["currency"].lower(),
        },
        "line_item": row.get("line_item"),
        "quantity": row.get("quantity"),
        "quantity_unit": "tokens" if "line_item" in row else None,
        "project_id": project,
        "user_id": row.get("user_id"),
        "api_key_id": row.get("api_key_id"),
        "api_source": None,
    }


def csv_rows(page: BucketPage, project: str | None, rows: Iterable[Row]) -> Iterator[Row]:
    """One a result, for the columns above."""
    for row in rows:
        start = int(row["bucket"].timestamp())
        line = {**row, "start_time": start, "end_time": min(start + page.width_s, page.end)}
        if "amount_micros" in row:
            line["amount"] = units(row["amount_micros"])
        yield {**line, "project_id": project}


def units(micros: int) -> str:
    """Micros as a decimal number of units, exact whatever its size.

    A reader that keeps it in a double gets the micros back, by rounding, up to 8 thousand million
    units.
    """
    return f"{micros // MICROS}.{micros % MICROS:06d}"
