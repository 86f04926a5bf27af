"""Of many mistakes the first is reported, and the others cost nothing."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from api.schemas.batches import CreateBatch
from api.schemas.chat import CreateChatCompletion
from api.schemas.completions import CreateCompletion
from api.schemas.jobs import CreateJob
from api.schemas.responses import CreateResponse
from api.schemas.webhooks import CreateWebhookEndpoint

MANY = 20_000
_UNKNOWN = {f"unknown_{n}": n for n in range(MANY)}


@pytest.mark.parametrize(
    ("schema", "body", "place"),
    [
        (CreateJob, _UNKNOWN, "unknown_0"),
        (CreateJob, {"messages": [{"role": "user", "content": "x", **_UNKNOWN}]}, "messages"),
        (CreateJob, {"messages": [7] * 2_000}, "messages"),
        (CreateJob, {"messages": [{"role": "user", "content": [7] * 200}] * 2_000}, "messages"),
        (CreateJob, {"stop": [7] * MANY}, "stop"),
        (CreateJob, {"stop_token_ids": ["x"] * MANY}, "stop_token_ids"),
        (CreateJob, {"tools": [7] * MANY}, "tools"),
        (CreateJob, {"logit_bias": _UNKNOWN}, "logit_bias"),
        (CreateJob, {"metadata": _UNKNOWN}, "metadata"),
        (CreateJob, {"structured_outputs": {"choice": [7] * MANY}}, "structured_outputs"),
        (CreateChatCompletion, {"messages": [7] * 2_000}, "messages"),
        (CreateChatCompletion, {"modalities": [7] * MANY}, "modalities"),
        (CreateCompletion, {"prompt": [None] * MANY}, "prompt"),
        (CreateCompletion, {"prompt": [1] * MANY + [None]}, "prompt"),
        (CreateResponse, {"input": [7] * 2_000}, "input"),
        (CreateResponse, {"input": [{"role": "user", "content": [7] * 200}] * 2_000}, "input"),
        (CreateResponse, {"include": [7] * MANY}, "include"),
        (CreateResponse, {"tools": [7] * MANY}, "tools"),
        (CreateWebhookEndpoint, {"event_types": [7] * MANY}, "event_types"),
        (CreateBatch, _UNKNOWN, "input_file_id"),
        (CreateBatch, {"metadata": _UNKNOWN}, "metadata"),
    ],
)
def test_thousands_of_mistakes_are_few_to_pydantic(
    schema: type[BaseModel], body: dict[str, Any], place: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        schema.model_validate(body)

    assert caught.value.error_count() <= 10  # with what is missing
    assert place in {str(error["loc"][0]) for error in caught.value.errors()}


def test_what_is_too_much_is_still_told_in_numbers() -> None:
    with pytest.raises(ValidationError) as caught:
        CreateJob.model_validate({"metadata": {str(n): "x" for n in range(17)}})

    error = next(error for error in caught.value.errors() if error["loc"] == ("metadata",))
    assert error["msg"] == "Dictionary should have at most 16 items after validation, not 17"
