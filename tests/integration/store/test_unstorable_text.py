"""JSON may hold text that Postgres can't: the request is at fault, and nothing of it stays."""

from __future__ import annotations

from typing import Any

import pytest

from tasks.errors import InvalidRequest
from tests.integration.store.writes import count
from tests.support.jobs import Jobs


@pytest.mark.parametrize(
    "changes",
    [
        {"request": {"prompt": "a\0b"}},
        {"request": {"prompt": "half a pair: \ud83d"}},
        {"sampling": {"stop": ["\0"]}},
        {"metadata": {"trace": "\0"}},
        {"end_user": "ann\0"},
        {"idempotency_key": "key\0"},
    ],
    ids="-".join,
)
def test_text_that_can_not_be_stored_makes_the_request_invalid(
    jobs: Jobs, changes: dict[str, Any]
) -> None:
    request = jobs.new(**{"idempotency_key": "key", **changes})

    with pytest.raises(InvalidRequest):
        jobs.admit(request)

    written = ["jobs", "job_payloads", "reservations", "idempotency_keys"]
    assert [count(jobs, table) for table in written] == [0, 0, 0, 0]
