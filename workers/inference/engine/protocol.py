"""What every engine offers and what a request to it is; the seam between the worker and any engine.

The engine knows requests, tokens and text. It knows nothing of jobs, tenants, Redis or Postgres.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from workers.inference.engine.errors import EngineError


class FinishReason(StrEnum):
    """Why a request ended. Every submitted request ends with exactly one of these."""

    STOP = "stop"  # end-of-sequence token, stop token or stop string
    LENGTH = "length"  # max_tokens, or the model's context is full
    ABORT = "abort"  # abort() was called
    DEADLINE = "deadline"  # the request's own deadline passed, before or during generation
    ERROR = "error"  # see TokenOutput.error


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How to choose tokens. Names and ranges are OpenAI's, extras are vLLM's."""

    max_tokens: int  # 0: the prompt is all there is
    temperature: float = 1.0  # 0 means greedy
    top_p: float = 1.0
    top_k: int = 0  # 0 means no limit
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None  # same seed and prompt give the same tokens whatever shares the batch
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    min_tokens: int = 0
    ignore_eos: bool = False
    n: int = 1  # choices; they share the prompt's KV cache, choice i draws with seed + i
    logprobs: int | None = None  # 0 to 20 most likely tokens beside the chosen one; None: none
    prompt_logprobs: int | None = None  # the same of the prompt's tokens, as the model has them
    skip_special_tokens: bool = True  # False: they say their names, as markers of tool calls must


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRequest:
    """One generation. Token ids are those of `model`'s tokenizer."""

    request_id: str
    model: str
    prompt_token_ids: Sequence[int]
    sampling: SamplingParams
    # Per choice, tokens an earlier attempt already produced; empty, or one sequence for each of
    # the n. They count towards max_tokens; their text is replayed silently (detokeniser, stop
    # strings, grammar), so output goes on right after them.
    generated_token_ids: Sequence[Sequence[int]] = ()
    num_scored: int = 0  # leading tokens of the prompt whose log-probabilities are known already
    cache_salt: str = ""  # prefix cache entries are shared only between equal salts
    deadline: float | None = None  # time.monotonic() instant
    grammar: str | None = None  # serialised llguidance grammar


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Natural logarithms of probabilities, before temperature and filters, after penalties.

    Those of a prompt know of no penalties either.
    """

    token_id: int
    logprob: float | None  # None for a prompt's first token, which follows none
    top: tuple[tuple[int, float], ...] = ()  # (token id, logprob), most likely first


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenOutput:
    """What one engine step produced for one request.

    `text` is the text these tokens completed: the concatenation over a request is the whole text,
    and it depends on the token ids alone (held-back bytes and stop-string prefixes come later, with
    the token that settles them, at the latest with the finish). The end-of-sequence or stop token
    that ends a choice is in `token_ids` and counted, never in `text`. A terminal output may carry
    no token.
    """

    request_id: str
    token_ids: tuple[int, ...] = ()
    text: str = ""
    index: int = 0  # which of n choices; each ends with a terminal output of its own
    logprobs: tuple[TokenLogprobs, ...] = ()  # one for each of token_ids where they were asked for
    # Of the prompt's next tokens, in order, where they were asked for: all of them come with choice
    # 0, before the first token of any choice.
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    finish_reason: FinishReason | None = None
    error: EngineError | None = None  # set exactly when finish_reason is ERROR
    cached_tokens: int = 0  # prompt tokens taken from the prefix cache; meaningful when terminal


# Called once per engine step, on the device thread, with everything that step produced.
# It must not block and must not raise.
StepSink = Callable[[Sequence[TokenOutput]], None]


class Phase(StrEnum):
    """What the device thread is doing; phases other than SERVING have a time limit of their own."""

    LOADING = "loading"
    COMPILING = "compiling"
    SERVING = "serving"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Progress:
    """Proof of life. `counter` moves with every step or loaded shard; idle needs no movement.

    A step at work may keep it still for `patience_s`, which follows from how long others took.
    """

    counter: int
    phase: Phase
    is_idle: bool
    patience_s: float = 0.0

    def has_moved_since(self, other: Progress) -> bool:
        return (self.counter, self.phase) != (other.counter, other.phase)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """A loaded model as the worker announces it."""

    name: str
    context_length: int
    vocab_size: int
    dtype: str
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """A snapshot; counters only grow, step seconds are sums over all steps."""

    num_running: int
    num_waiting: int
    num_steps: int
    prompt_tokens: int
    generated_tokens: int
    num_preemptions: int
    num_out_of_memory: int  # steps that had to be taken again with a smaller budget
    num_restarts: int  # of the step loop, after a fault that was no request's
    prefix_queries: int  # prompt tokens looked up in the prefix cache
    prefix_hits: int  # of them, tokens found there
    kv_cache_usage: float  # 0 to 1
    schedule_s: float
    run_s: float
    sample_s: float
    emit_s: float


class Engine(Protocol):
    """A continuous-batching engine. All methods are thread-safe.

    `submit` validates and returns; output reaches the sink until each of the request's n choices
    has had one terminal output.
    """

    @property
    def max_num_seqs(self) -> int:
        """Slots: requests that can be in one batch."""
        ...

    @property
    def models(self) -> Mapping[str, ModelInfo]:
        """Loaded models by name."""
        ...

    @property
    def refused(self) -> Mapping[str, str]:
        """Models that were to be loaded and can't be served, with the reason in one line."""
        ...

    def start(self, sink: StepSink) -> None:
        """Start the device thread. Call once. On return each model is loaded or refused."""
        ...

    def submit(self, request: EngineRequest) -> None:
        """Queue a request. Raises EngineError (never half-accepts) for one that can't be served.

        Compiles the request's grammar in the calling thread, which can take a second.

        A continuation whose tokens already end it (eos, stop string, max_tokens) is accepted and
        ends with a terminal output that carries no token. So does a request of no tokens.
        """
        ...

    def abort(self, request_id: str) -> None:
        """End a request within two steps, with finish_reason ABORT. Unknown ids are ignored."""
        ...

    def progress(self) -> Progress:
        """For the heartbeat: a beat is sent only while this shows life."""
        ...

    def stats(self) -> EngineStats:
        """For metrics."""
        ...

    def shutdown(self) -> None:
        """Stop the device thread; requests still running end with ABORT. Safe to call twice."""
        ...
