"""A batch that fails costs the requests at fault, and no others."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from tests.unit.engine.requests import running_request
from workers.inference.engine.bisection import Computed, bisect
from workers.inference.engine.errors import EngineError
from workers.inference.engine.request import Request
from workers.inference.engine.scheduler import Batch, Chunk


class Device:
    """Fails on every batch that holds a guilty request, and remembers the sizes it was given."""

    def __init__(self, guilty: Collection[Request]) -> None:
        self._guilty = guilty
        self.sizes: list[tuple[int, int]] = []  # chunks, and decodes among them

    def compute(self, batch: Batch) -> Computed:
        self.sizes.append((len(batch.chunks), batch.num_decodes))
        if any(request in self._guilty for request in batch.requests):
            raise RuntimeError("a faulty request")
        return Computed(batch, batch.requests, [])


def batch_of(requests: list[Request], *, num_decodes: int = 0) -> Batch:
    return Batch(tuple(Chunk(request, 0, 1) for request in requests), num_decodes)


def requests_named(num: int) -> list[Request]:
    return [running_request(request_id=str(i)) for i in range(num)]


@pytest.mark.parametrize("guilty", [{0}, {7}, {0, 7}, {0, 1, 2}, {5, 6, 7}, {0, 4, 5, 6}])
def test_only_the_guilty_fail(guilty: set[int]) -> None:
    requests = requests_named(8)
    device = Device([requests[i] for i in guilty])

    outcome = bisect(device.compute, batch_of(requests), RuntimeError())

    failed = {request.request_id for request, _ in outcome.failed}
    computed = [r.request_id for piece in outcome.computed for r in piece.batch.requests]
    assert failed == {str(i) for i in guilty}
    assert sorted([*failed, *computed]) == [str(i) for i in range(8)]


def test_device_at_fault_is_given_up_after_a_few_requests() -> None:
    requests = requests_named(64)
    device = Device(requests)

    outcome = bisect(device.compute, batch_of(requests), RuntimeError())

    failed = [request.request_id for request, _ in outcome.failed]
    assert sorted(failed, key=int) == [str(i) for i in range(64)]
    assert len(device.sizes) < 20


def test_decodes_stay_in_front_of_each_piece() -> None:
    requests = requests_named(4)
    device = Device(requests[:1])

    bisect(device.compute, batch_of(requests, num_decodes=3), RuntimeError())

    assert device.sizes == [(2, 2), (2, 1), (1, 1), (1, 1)]


def test_chunk_that_finds_no_memory_is_halved_until_it_does() -> None:
    request = running_request(prompt_token_ids=list(range(16)))
    sizes: list[int] = []

    def compute(batch: Batch) -> Computed:
        sizes.append(batch.num_tokens)
        if batch.num_tokens > 4:
            raise EngineError("out_of_memory", "", retryable=True)
        return Computed(batch, batch.sampled, [])

    error = EngineError("out_of_memory", "", retryable=True)
    outcome = bisect(compute, Batch((Chunk(request, 0, 16),)), error)

    assert sizes == [8, 4]
    assert outcome.failed == []
    assert [piece.batch.num_tokens for piece in outcome.computed] == [4]


def test_chunk_of_one_token_that_finds_no_memory_fails() -> None:
    request, error = running_request(), EngineError("out_of_memory", "", retryable=True)

    outcome = bisect(Device([request]).compute, batch_of([request]), error)

    assert outcome.failed == [(request, error)]
