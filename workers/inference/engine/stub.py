"""A deterministic engine without a model: the same loop as the real one, simulated device work.

Token i of a request is a function of its seed and i alone, so a test can foretell any output.
Choice c of n is what a request with seed + c would be; log-probabilities follow from the token.
"""

from __future__ import annotations

import os
import threading
import time
import zlib
from array import array
from collections.abc import Sequence

from workers.inference.engine.config import DEFAULT_MAX_NUM_BATCHED_TOKENS, StubConfig
from workers.inference.engine.engine import BatchEngine, OnProgress
from workers.inference.engine.errors import EngineError
from workers.inference.engine.executor import SampledToken
from workers.inference.engine.protocol import (
    EngineRequest,
    ModelInfo,
    SamplingParams,
    StepSink,
    TokenLogprobs,
    TokenOutput,
)
from workers.inference.engine.request import Grammar, Request
from workers.inference.engine.scheduler import Batch, Chunk

EOS_TOKEN_ID = 0  # never drawn as an ordinary token
PAGE_SIZE = 16  # tokens


def prompt_seed(prompt_token_ids: Sequence[int]) -> int:
    """The seed of a request that names none; the same in every process."""
    return zlib.crc32(array("q", prompt_token_ids).tobytes())


def expected_tokens(seed: int, n: int, vocab_size: int = 32_000) -> list[int]:
    """The first n tokens of a request with this seed."""
    return [_token(seed, i, vocab_size) for i in range(n)]


def expected_text(seed: int, n: int, vocab_size: int = 32_000) -> str:
    """The text of the first n tokens of a request with this seed."""
    return "".join(token_text(token_id) for token_id in expected_tokens(seed, n, vocab_size))


def expected_logprobs(token_id: int, num_top: int, vocab_size: int = 32_000) -> TokenLogprobs:
    """The log-probabilities of a token: it is the likeliest, those with the next ids follow."""
    logprob = -1 / (2 + token_id % 7)
    top = (((token_id + rank) % vocab_size, logprob - rank) for rank in range(num_top))
    return TokenLogprobs(token_id, logprob, tuple(top))


def token_text(token_id: int) -> str:
    """What one token says; the end-of-sequence token says nothing."""
    return "" if token_id == EOS_TOKEN_ID else f" w{token_id}"


class StubEngine(BatchEngine):
    """Engine for tests of everything above the engine. Starts without torch, in milliseconds."""

    def __init__(
        self, config: StubConfig | None = None, on_progress: OnProgress | None = None
    ) -> None:
        self._config = config = config or StubConfig()
        self._oracle = _Oracle(config)
        self._is_released = threading.Event()
        self._is_released.set()
        super().__init__(
            self._load_stubs,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=DEFAULT_MAX_NUM_BATCHED_TOKENS,
            on_progress=on_progress,
        )

    def start(self, sink: StepSink) -> None:
        def observed(outputs: Sequence[TokenOutput]) -> None:
            self._oracle.write_finished(outputs)
            sink(outputs)

        super().start(observed)

    def submit(self, request: EngineRequest) -> None:
        super().submit(request)
        self._oracle.write_submitted(request)

    def shutdown(self) -> None:
        self.release()
        super().shutdown()

    def hang(self) -> None:
        """Block the device thread inside its next step, as a stuck device would."""
        self._is_released.clear()

    def release(self) -> None:
        """End hang(); the blocked step goes on."""
        self._is_released.set()

    def _load_stubs(self, report: OnProgress) -> list[StubExecutor]:
        self._refused = dict.fromkeys(self._config.refused, "the stub was told to refuse it")
        names = [name for name in self._config.model_names if name not in self._refused]
        executors = [StubExecutor(name, self._config, self._is_released) for name in names]
        for i, name in enumerate(names, start=1):
            report(name, i / len(names))
        return executors


class StubExecutor:
    """Executor that waits instead of computing."""

    def __init__(self, name: str, config: StubConfig, is_released: threading.Event) -> None:
        self._config = config
        self._is_released = is_released
        self.max_num_seqs = config.max_num_seqs
        self.page_size = PAGE_SIZE
        pages_per_request = -(-config.context_length // PAGE_SIZE)
        self.num_pages = config.num_pages or config.max_num_seqs * pages_per_request
        self.eos_token_ids = frozenset({EOS_TOKEN_ID})
        self.info = ModelInfo(
            name=name,
            context_length=config.context_length,
            vocab_size=config.vocab_size,
            dtype="stub",
            num_bytes=0,
        )

    def decoder(self, _sampling: SamplingParams) -> StubDecoder:
        return StubDecoder()

    def seed(self, request: EngineRequest) -> int:
        seed = request.sampling.seed
        return prompt_seed(request.prompt_token_ids) if seed is None else seed

    def grammar(self, _text: str) -> Grammar:
        raise EngineError("unsupported", "this engine does not support grammars")

    def run(self, batch: Batch) -> None:
        self._fail_as_configured(batch)
        num_sampled = len(batch.sampled)
        num_prefilled = batch.num_tokens - batch.num_decodes
        work_ms = self._config.step_ms + num_sampled * self._config.token_ms
        work_ms += num_prefilled * self._config.prompt_token_ms
        if work_ms > 0:
            time.sleep(work_ms / 1000)
        self._is_released.wait()

    def sample(
        self, _scores: object, requests: Sequence[Request]
    ) -> list[SampledToken | EngineError]:
        return [self._sample(request) for request in requests]

    def score(self, _scores: object, batch: Batch) -> list[list[TokenLogprobs]]:
        return [self._score(chunk) for chunk in batch.scored]

    def _score(self, chunk: Chunk) -> list[TokenLogprobs]:
        token_ids, num_top = chunk.request.token_ids, chunk.request.sampling.prompt_logprobs or 0
        vocab_size = self._config.vocab_size
        rows = chunk.rows_to_score
        return [expected_logprobs(token_ids[row + 1], num_top, vocab_size) for row in rows]

    def _fail_as_configured(self, batch: Batch) -> None:
        most = self._config.oom_above_tokens
        if most is not None and batch.num_tokens > most:
            message = f"{batch.num_tokens} tokens are more than {most}"
            raise EngineError("out_of_memory", message, retryable=True)
        poison = self._config.poison_token_id
        if poison is not None and any(poison in _prompt_tokens(chunk) for chunk in batch.chunks):
            raise RuntimeError("the batch is poisoned")

    def _sample(self, request: Request) -> SampledToken:
        token_id, num_top = self._next_token(request), request.sampling.logprobs
        if num_top is None:
            return SampledToken(token_id)
        return SampledToken(token_id, expected_logprobs(token_id, num_top, self._config.vocab_size))

    def _next_token(self, request: Request) -> int:
        if request.num_generated == self._end_index(request.sampling):
            return EOS_TOKEN_ID
        return _token(request.seed, request.num_generated, self._config.vocab_size)

    def _end_index(self, sampling: SamplingParams) -> int | None:
        if self._config.num_tokens is None or sampling.ignore_eos:
            return None
        return max(self._config.num_tokens, sampling.min_tokens)


class StubDecoder:
    """Every token is a word of its own."""

    def push(self, token_id: int) -> str:
        return token_text(token_id)

    def flush(self) -> str:
        return ""


class _Oracle:
    """Append-only file that shows executions: a request id accepted twice ran twice.

    Lines: `submitted <id> <tokens it continues from>`, then `finished <id> <reason>` for each
    choice. Each is one write in append mode, so several processes may share the file.
    """

    def __init__(self, config: StubConfig) -> None:
        self._path = config.oracle_path

    def write_submitted(self, request: EngineRequest) -> None:
        num_generated = sum(len(token_ids) for token_ids in request.generated_token_ids)
        self._write(f"submitted {request.request_id} {num_generated}\n")

    def write_finished(self, outputs: Sequence[TokenOutput]) -> None:
        ended = (output for output in outputs if output.finish_reason is not None)
        self._write("".join(f"finished {o.request_id} {o.finish_reason}\n" for o in ended))

    def _write(self, lines: str) -> None:
        if self._path is None or not lines:
            return
        fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(fd, lines.encode())
        finally:
            os.close(fd)


def _prompt_tokens(chunk: Chunk) -> list[int]:
    request = chunk.request
    return request.token_ids[chunk.start : min(chunk.end, request.num_prompt)]


def _token(seed: int, i: int, vocab_size: int) -> int:
    return 1 + zlib.crc32(f"{seed}:{i}".encode()) % (vocab_size - 1)
