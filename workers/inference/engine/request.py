"""The engine's state of one choice of a request: its tokens, its text, and the rule that ends it.

After submit only the device thread touches it.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from workers.inference.engine.detokenizer import Decoder, StopMatcher
from workers.inference.engine.errors import EngineError
from workers.inference.engine.protocol import (
    EngineRequest,
    FinishReason,
    TokenLogprobs,
    TokenOutput,
)

_NO_ROWS = range(0)

if TYPE_CHECKING:
    from workers.inference.engine.executor import SampledToken
    from workers.inference.engine.sampling.penalties import SamplerState


class Grammar(Protocol):
    """Where one generation stands in its grammar. The sampler asks it which tokens may follow."""

    @property
    def is_stopped(self) -> bool:
        """May nothing follow any more?"""
        ...

    def accept(self, token_id: int) -> None:
        """Go on by one token. Raises EngineError for a token that may not follow."""
        ...

    def copy(self) -> Grammar:
        """Another generation at the same place. Cheap beside compiling the grammar again."""
        ...


class Request:
    """One generation in the engine. `token_ids` is the prompt followed by everything generated."""

    def __init__(
        self,
        request: EngineRequest,
        *,
        decoder: Decoder,
        eos_token_ids: frozenset[int],
        context_length: int,
        index: int = 0,
        seed: int | None = None,
        grammar: Grammar | None = None,
    ) -> None:
        """Replays the tokens of choice `index`; `seed` is that choice's own, None draws one.

        Raises what decoder and grammar raise on these tokens.
        """
        self.request_id = request.request_id
        self.index = index
        self.model = request.model
        self.sampling = request.sampling
        self.cache_salt = request.cache_salt
        self.deadline = request.deadline
        self.num_prompt = len(request.prompt_token_ids)
        self.token_ids = [int(token_id) for token_id in request.prompt_token_ids]
        self.max_num_tokens = min(self.num_prompt + request.sampling.max_tokens, context_length)
        self.seed = secrets.randbits(63) if seed is None else seed
        self.grammar = grammar
        self.finish_reason: FinishReason | None = None
        self.error: EngineError | None = None
        # The scheduler's. Page i of the KV cache holds tokens i * page_size and following.
        self.pages: list[int] = []
        self.page_digests: list[bytes] = []  # of the first full pages, as far as they were needed
        self.num_computed = 0  # leading tokens whose keys and values are in the KV cache
        self.cached_tokens: int | None = None  # of the prompt, found at the first admission
        self.awaited_digest: bytes | None = None  # of a page that another request is computing
        self.sampler_state: SamplerState | None = None
        # Leading tokens of the prompt whose log-probabilities have been told; all, if nobody asks.
        is_scored = request.sampling.prompt_logprobs is not None and index == 0
        self.num_scored = request.num_scored if is_scored else self.num_prompt
        self.scorer: Request | None = None  # the choice that scores the prompt of this one
        self._end_of_replay: FinishReason | None = None
        self._end_token_ids = frozenset(request.sampling.stop_token_ids)
        if not request.sampling.ignore_eos:
            self._end_token_ids |= eos_token_ids
        self._decoder = decoder
        self._stops = StopMatcher(request.sampling.stop)
        self._replay(request)
        if self.is_finished and self.num_scored < self.num_prompt:
            self._go_back_to_prompt()

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_generated(self) -> int:
        return len(self.token_ids) - self.num_prompt

    @property
    def is_finished(self) -> bool:
        return self.finish_reason is not None

    @property
    def is_scoring(self) -> bool:
        """Are log-probabilities of its prompt still to be told?"""
        return self.num_scored < self.num_prompt and not self.is_finished

    @property
    def num_skippable(self) -> int:
        """Leading tokens that need not be computed where a cache holds them: not the newest, whose
        scores the next token is sampled from, nor one whose scores tell of the prompt.
        """
        return max(self.num_scored, 1) - 1 if self.is_scoring else self.num_tokens - 1

    def rows_to_score(self, start: int, end: int) -> range:
        """Tokens from `start` to `end` whose scores tell how likely a token of the prompt is."""
        if self.num_scored >= self.num_prompt:
            return _NO_ROWS
        first = max(start, self.num_scored - 1)
        return range(first, max(first, min(end, self.num_prompt - 1)))

    def tell_prompt(self, scores: Sequence[TokenLogprobs]) -> TokenOutput | None:
        """Take the log-probabilities of the prompt's next tokens. None if there is nothing new."""
        if self.num_scored == 0:
            scores = (TokenLogprobs(self.token_ids[0], None), *scores)
        if not scores:
            return None
        self.num_scored += len(scores)
        return TokenOutput(
            request_id=self.request_id, index=self.index, prompt_logprobs=tuple(scores)
        )

    @property
    def suppressed_token_ids(self) -> frozenset[int]:
        """Tokens that may not be sampled now: those that would end the request too early."""
        is_too_early = self.num_generated < self.sampling.min_tokens
        return self._end_token_ids if is_too_early else frozenset()

    def append(self, sampled: SampledToken) -> TokenOutput:
        """Take a sampled token; decides whether it ends the request. Raises as the grammar does."""
        if self._end_of_replay is not None:
            self.finish_reason = self._end_of_replay
            return self._output((), "")
        text = self._accept(sampled.token_id)
        logprobs = () if sampled.logprobs is None else (sampled.logprobs,)
        return self._output((sampled.token_id,), text, logprobs)

    def finish(self, reason: FinishReason, error: EngineError | None = None) -> TokenOutput:
        """End without a further token; never raises. Text held back comes out, unless it failed."""
        self.finish_reason, self.error = reason, error
        try:
            text = "" if error else self._flush()
        except Exception:  # the tokenizer's own; this end comes from outside and must be told
            text = ""
        return self._output((), text)

    def output_of_replay(self) -> TokenOutput:
        """The terminal output of a continuation that its own tokens had ended already."""
        assert self.is_finished
        return self._output((), "")

    def _replay(self, request: EngineRequest) -> None:
        generated = request.generated_token_ids[self.index] if request.generated_token_ids else ()
        for token_id in generated:
            self._accept(int(token_id))
            if self.is_finished:
                return
        if self.num_tokens >= self.max_num_tokens:
            self.finish_reason = FinishReason.LENGTH

    def _go_back_to_prompt(self) -> None:
        """Its own tokens are over, and their text is out; the prompt is yet to be scored."""
        self._end_of_replay, self.finish_reason = self.finish_reason, None
        self.max_num_tokens = self.num_prompt
        del self.token_ids[self.num_prompt :]
        self.grammar = None

    def _accept(self, token_id: int) -> str:
        self.token_ids.append(token_id)
        is_early = self.num_generated < self.sampling.min_tokens
        if token_id in self._end_token_ids and not is_early:
            self.finish_reason = FinishReason.STOP
            return self._flush()
        if self.grammar is not None:
            self.grammar.accept(token_id)
        text = self._decoder.push(token_id)
        if not is_early:
            text = self._stops.push(text)
        if self._stops.is_stopped:
            self.finish_reason = FinishReason.STOP
        elif self.grammar is not None and self.grammar.is_stopped:
            self.finish_reason = FinishReason.STOP
            text += self._flush()
        elif self.num_tokens >= self.max_num_tokens:
            self.finish_reason = FinishReason.LENGTH
            text += self._flush()
        return text

    def _flush(self) -> str:
        # The last bytes may complete a stop string: it is cut, the finish reason stays.
        text = self._stops.push(self._decoder.flush())
        return text + self._stops.flush()

    def _output(
        self, token_ids: tuple[int, ...], text: str, logprobs: tuple[TokenLogprobs, ...] = ()
    ) -> TokenOutput:
        return TokenOutput(
            request_id=self.request_id,
            token_ids=token_ids,
            text=text,
            index=self.index,
            logprobs=logprobs,
            finish_reason=self.finish_reason,
            error=self.error,
            cached_tokens=self.cached_tokens or 0,
        )
