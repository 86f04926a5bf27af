"""Lines with very many log-probabilities: written as any other, and never in memory as a whole."""

from __future__ import annotations

import errno
import io
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from store.logprobs import LOGPROBS_A_QUERY
from tests.integration.batches.conftest import Batches
from workers.batches import showing
from workers.batches.driver import Driver
from workers.batches.writing import LineWriter

# A result of so many choices, each with so many tokens that have twenty candidates each.
_LOGPROBS = """
UPDATE job_results SET output = (
    SELECT jsonb_agg(jsonb_build_object('index', c, 'text', repeat('four ', %(num_tokens)s),
        'finish_reason', 'stop',
        'logprobs', jsonb_build_object('token_ids', ids, 'values', values)))
    FROM generate_series(0, %(num_choices)s - 1) c, (
        SELECT jsonb_agg(5 + n %% 50) AS ids, jsonb_agg(jsonb_build_array(-0.5 - n / 7.0, top))
            AS values
        FROM generate_series(1, %(num_tokens)s) n, (
            SELECT jsonb_agg(jsonb_build_array(5 + t, -0.25 - t / 3.0)) AS top
            FROM generate_series(1, 20) t) tops
    ) tokens)
"""


def _over(batches: Batches, num_lines: int, *, num_choices: int, num_tokens: int) -> UUID:
    """A batch whose lines' jobs are over, and stand in no file yet."""
    batch = batches.add(batches.tenant(), [{}] * num_lines)
    batches.drive(lambda: _num_submitted(batches, batch) == num_lines)
    batches.end_jobs()
    batches.rows.connection.execute(
        _LOGPROBS, {"num_choices": num_choices, "num_tokens": num_tokens}
    )
    return batch


def _num_submitted(batches: Batches, batch: UUID) -> int:
    query = "SELECT count(*) AS num FROM batch_lines WHERE batch_id = %s AND state = 'submitted'"
    return int(batches.rows.one(query, batch)["num"])


def _write(batches: Batches, batch: UUID, *, long_bytes: int) -> list[int]:
    """With a writer for which results from so many bytes on are long: the lines of each step."""
    row = batches.lease(batch)
    nums: list[int] = []

    async def act(driver: Driver) -> None:
        registry = driver._submitter._admission.registry
        writer = LineWriter(batches.pool, batches.contents, registry, long_bytes=long_bytes)
        while num := writer.write(batches.row(batch) | row | _files(batches, batch)):
            nums.append(num)

    batches.run(act)
    return nums


def _files(batches: Batches, batch: UUID) -> dict[str, Any]:
    row = batches.row(batch)
    return {name: row[name] for name in ("output_file_id", "error_file_id")}


def _shown(batches: Batches, batch: UUID) -> list[Any]:
    return [line["response"]["body"]["choices"] for line in batches.lines(batch)]


def test_a_long_line_is_written_as_a_short_one(batches: Batches) -> None:
    steps, shown = [], []
    for long_bytes in (1 << 30, 0):
        batch = _over(batches, 3, num_choices=2, num_tokens=600)
        steps.append(_write(batches, batch, long_bytes=long_bytes))
        shown.append(_shown(batches, batch))

    assert steps == [[3], [1, 1, 1]]
    assert shown[0] == shown[1]
    content = shown[0][0][1]["logprobs"]["content"]
    assert (len(content), len(content[0]["top_logprobs"])) == (600, 20)


def test_a_long_line_has_the_log_probabilities_of_all_its_tokens(batches: Batches) -> None:
    num_tokens = LOGPROBS_A_QUERY + 10  # more than are read at once
    batch = _over(batches, 1, num_choices=1, num_tokens=num_tokens)

    _write(batches, batch, long_bytes=0)

    [[choice]] = _shown(batches, batch)
    assert len(choice["logprobs"]["content"]) == num_tokens


def test_a_long_line_is_never_in_memory_as_a_whole(batches: Batches) -> None:
    batch = _over(batches, 1, num_choices=4, num_tokens=1_500)

    tracemalloc.start()
    try:
        _write(batches, batch, long_bytes=0)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    written = batches.rows.one("SELECT num_bytes FROM files WHERE filename = 'output.jsonl'")
    assert written["num_bytes"] > 6_000_000
    assert peak < 16_000_000


def _shorten(batches: Batches, batch: UUID, *, from_number: int) -> None:
    batches.rows.connection.execute(
        'UPDATE job_results SET output = \'[{"index": 0, "text": "x", "finish_reason": "stop"}]\''
        " WHERE job_id IN (SELECT job_id FROM batch_lines WHERE batch_id = %s AND number >= %s)",
        (batch, from_number),
    )


class _Full(io.BytesIO):
    """A file for whose last bytes there is no room, as the kernel says once they are flushed."""

    def flush(self) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


def _nowhere(patch: pytest.MonkeyPatch, tmp_path: Path, _opened: list[_Full]) -> None:
    patch.setattr(tempfile, "tempdir", str(tmp_path / "there is none"))


def _too_small(patch: pytest.MonkeyPatch, _: Path, opened: list[_Full]) -> None:
    def open_full() -> _Full:
        opened.append(_Full())
        return opened[-1]

    patch.setattr(showing, "TemporaryFile", open_full)


@pytest.mark.parametrize("fill_up", [_nowhere, _too_small])
def test_a_long_line_waits_for_room_on_the_disk_and_holds_up_none_behind_it(
    batches: Batches, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fill_up: Any
) -> None:
    batch = _over(batches, 4, num_choices=1, num_tokens=60)
    _shorten(batches, batch, from_number=3)
    opened: list[_Full] = []
    with monkeypatch.context() as patch:
        fill_up(patch, tmp_path, opened)
        assert _write(batches, batch, long_bytes=900) == [2]  # a step puts one off
    assert all(file.closed for file in opened)  # else they would take what room there is
    assert [line["custom_id"] for line in batches.lines(batch)] == ["line-3", "line-4"]
    query = "SELECT array_agg(num_tries ORDER BY number) AS nums FROM batch_lines"
    assert batches.rows.one(query)["nums"] == [1, 1, 0, 0]
    batches.rows.connection.execute("UPDATE batches SET leased_until = now() - interval '1 s'")

    assert _write(batches, batch, long_bytes=900) == [1, 1]

    assert batches.row(batch)["error_file_id"] is None
    nums = [len(choice["logprobs"]["content"]) for [choice] in _shown(batches, batch)[2:]]
    assert nums == [60, 60]
