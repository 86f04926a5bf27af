"""Token rows for training: conversations packed into rows, made by other processes in shards.

A shard is named by its number and the seed alone, so the same seed gives the same rows on any
machine. A third of the shards has rows as long as the whole context.
"""

import multiprocessing
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from models.demo.corpus.conversations import conversation
from models.demo.tokens import CONTEXT, Encoder

SHARD_TOKENS = 262_144
SHORT_ROW = 512  # tokens
LONG_EVERY = 3  # every third shard has long rows
_encoders: dict[str, Encoder] = {}


@dataclass(frozen=True)
class Shard:
    ids: NDArray[np.uint16]  # [rows, row length]
    is_answer: NDArray[np.uint8]  # same shape


@dataclass(frozen=True)
class Order:
    """What a worker process needs to make one shard."""

    seed: int
    number: int
    tokenizer_file: str

    @property
    def row_length(self) -> int:
        return CONTEXT if self.number % LONG_EVERY == LONG_EVERY - 1 else SHORT_ROW


def _length_wanted(rng: random.Random, row_length: int) -> int:
    """Characters of the next conversation; 0 asks for one exchange."""
    if row_length == CONTEXT and rng.random() < 0.6:
        return rng.randint(3_000, 15_000)
    return 0 if rng.random() < 0.6 else rng.randint(150, 1_500)


def _row(rng: random.Random, encoder: Encoder, length: int) -> tuple[list[int], list[int]]:
    ids: list[int] = []
    is_answer: list[int] = []
    while len(ids) < length:
        more, more_answer = encoder.encode(conversation(rng, _length_wanted(rng, length)))
        ids += more
        is_answer += more_answer
    return ids[:length], is_answer[:length]


def make_shard(order: Order) -> Shard:
    if order.tokenizer_file not in _encoders:
        _encoders[order.tokenizer_file] = Encoder(Tokenizer.from_file(order.tokenizer_file))
    encoder = _encoders[order.tokenizer_file]
    rng = random.Random(f"{order.seed}:{order.number}")
    length = order.row_length
    rows = [_row(rng, encoder, length) for _ in range(SHARD_TOKENS // length)]
    return Shard(
        np.array([ids for ids, _ in rows], dtype=np.uint16),
        np.array([is_answer for _, is_answer in rows], dtype=np.uint8),
    )


class Shards:
    """All shards of a run. The first pass waits for the makers; later passes read from memory."""

    def __init__(self, seed: int, tokenizer_file: Path, num_shards: int, num_makers: int) -> None:
        orders = [Order(seed, number, str(tokenizer_file)) for number in range(num_shards)]
        self._pool = multiprocessing.get_context("fork").Pool(num_makers)
        self._coming = self._pool.imap(make_shard, orders)
        self._made: list[Shard] = []
        self._num_shards = num_shards

    def endless(self) -> Iterator[Shard]:
        number = 0
        while True:
            if number == len(self._made):
                self._made.append(next(self._coming))
            yield self._made[number]
            number = (number + 1) % self._num_shards

    def batches(self, num_tokens: int) -> Iterator[Shard]:
        """Batches of about `num_tokens` tokens, all rows of a batch equally long."""
        for shard in self.endless():
            num_rows = max(1, num_tokens // shard.ids.shape[1])
            for at in range(0, len(shard.ids), num_rows):
                yield Shard(shard.ids[at : at + num_rows], shard.is_answer[at : at + num_rows])

    def close(self) -> None:
        self._pool.terminate()
        self._pool.join()
