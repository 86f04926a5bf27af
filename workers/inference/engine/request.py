"""The engine's state of one request: its tokens, its text, and the rule that ends it.

After submit only the device thread touches it.
"""

from __future__ import annotations

import secrets

from workers.inference.engine.detokenizer import Decoder, StopMatcher
from workers.inference.engine.errors import EngineError
from workers.inference.engine.protocol import EngineRequest, FinishReason, TokenOutput


class Request:
    """One generation in the engine. `token_ids` is the prompt followed by everything generated."""

    def __init__(
        self,
        request: EngineRequest,
        *,
        decoder: Decoder,
        eos_token_ids: frozenset[int],
        context_length: int,
        seed: int | None = None,
    ) -> None:
        self.request_id = request.request_id
        self.model = request.model
        self.sampling = request.sampling
        self.deadline = request.deadline
        self.num_prompt = len(request.prompt_token_ids)
        self.token_ids = [int(token_id) for token_id in request.prompt_token_ids]
        self.seed = secrets.randbits(63) if seed is None else seed
        self.slot: int | None = None
        self.num_computed = 0  # leading tokens whose keys and values are in the KV cache
        self.finish_reason: FinishReason | None = None
        self.error: EngineError | None = None
        self._context_length = context_length
        self._end_token_ids = frozenset(request.sampling.stop_token_ids)
        if not request.sampling.ignore_eos:
            self._end_token_ids |= eos_token_ids
        self._decoder = decoder
        self._stops = StopMatcher(request.sampling.stop)
        self._replay(request)

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
    def suppressed_token_ids(self) -> frozenset[int]:
        """Tokens that may not be sampled now: those that would end the request too early."""
        is_too_early = self.num_generated < self.sampling.min_tokens
        return self._end_token_ids if is_too_early else frozenset()

    def append(self, token_id: int) -> TokenOutput:
        """Take a sampled token; decides whether it ends the request."""
        text = self._accept(token_id)
        return self._output((token_id,), text)

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
        for token_id in request.generated_token_ids:
            self._accept(int(token_id))
            if self.is_finished:
                return

    def _accept(self, token_id: int) -> str:
        self.token_ids.append(token_id)
        is_early = self.num_generated < self.sampling.min_tokens
        if token_id in self._end_token_ids and not is_early:
            self.finish_reason = FinishReason.STOP
            return self._flush()
        text = self._decoder.push(token_id)
        if not is_early:
            text = self._stops.push(text)
        if self._stops.is_stopped:
            self.finish_reason = FinishReason.STOP
        elif self._is_full:
            self.finish_reason = FinishReason.LENGTH
            text += self._flush()
        return text

    @property
    def _is_full(self) -> bool:
        return (
            self.num_generated >= self.sampling.max_tokens
            or self.num_tokens >= self._context_length
        )

    def _flush(self) -> str:
        # The last bytes may complete a stop string: it is cut, the finish reason stays.
        text = self._stops.push(self._decoder.flush())
        return text + self._stops.flush()

    def _output(self, token_ids: tuple[int, ...], text: str) -> TokenOutput:
        return TokenOutput(
            request_id=self.request_id,
            token_ids=token_ids,
            text=text,
            finish_reason=self.finish_reason,
            error=self.error,
        )
