"""Reads the lists of an answer from Postgres while it is sent, bit by bit: each bit in its turn."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncGenerator

import orjson

from api.json_pieces import LaterList, ListPart, Tokens, list_bytes
from api.long_work import LongWork
from store.jobs import JobRow, read_logprobs
from store.logprobs import LOGPROBS_A_QUERY
from store.pools import AsyncPool

# Some lists show the same tokens, each another side of them: what one query gives is read once.
_PARTS_KEPT = 2  # a choice's own and its prompt's

_Bits = list[tuple[str, str]]  # token ids and log-probabilities, as JSON


class ListReader:
    """One answer's."""

    def __init__(self, pool: AsyncPool, long_work: LongWork, row: JobRow) -> None:
        self._pool = pool
        self._long_work = long_work
        self._row = row
        self._kept: OrderedDict[tuple[int, bool], _Bits] = OrderedDict()

    def read(self, later: LaterList) -> AsyncGenerator[bytes]:
        """A list of a finished job's, as JSON. Raises JobNotFound if it is deleted meanwhile."""
        return list_bytes(later, self._tokens)

    async def _tokens(self, part: ListPart) -> AsyncGenerator[Tokens]:
        key = part.choice, part.is_prompt
        bits: _Bits = []
        num_tokens = 0
        async for token_ids, values in self._bits(part):
            await self._long_work.turn()
            tokens = orjson.loads(token_ids), orjson.loads(values)
            num_tokens += len(tokens[0])
            if num_tokens < LOGPROBS_A_QUERY:
                bits.append((token_ids, values))
            yield tokens
        if num_tokens < LOGPROBS_A_QUERY and key not in self._kept:
            self._kept[key] = bits
            if len(self._kept) > _PARTS_KEPT:
                self._kept.popitem(last=False)

    async def _bits(self, part: ListPart) -> AsyncGenerator[tuple[str, str]]:
        kept = self._kept.get((part.choice, part.is_prompt))
        if kept is not None:
            self._kept.move_to_end((part.choice, part.is_prompt))
            for bit in kept:
                yield bit
            return
        row = self._row
        rows = read_logprobs(
            self._pool, row["tenant_id"], row["id"], part.choice, of_prompt=part.is_prompt
        )
        try:
            async for bit in rows:
                yield bit
        finally:
            await rows.aclose()
