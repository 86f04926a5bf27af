"""What the step loop needs of one model: run a batch, sample from it. The seam under the engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from workers.inference.engine.detokenizer import Decoder
from workers.inference.engine.errors import EngineError
from workers.inference.engine.protocol import (
    EngineRequest,
    ModelInfo,
    SamplingParams,
    TokenLogprobs,
)
from workers.inference.engine.request import Grammar, Request
from workers.inference.engine.scheduler import Batch


@dataclass(frozen=True, slots=True)
class SampledToken:
    """The next token of one request; `logprobs` where the request asks for them."""

    token_id: int
    logprobs: TokenLogprobs | None = None


class Executor(Protocol):
    """One resident model. `run` and `sample` are called by the device thread only."""

    @property
    def info(self) -> ModelInfo:
        """What the worker announces."""
        ...

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """Tokens that end a generation."""
        ...

    @property
    def max_num_seqs(self) -> int:
        """Requests that can be in one batch."""
        ...

    @property
    def page_size(self) -> int:
        """Tokens whose keys and values one page of the KV cache holds."""
        ...

    @property
    def num_pages(self) -> int:
        """Pages of the KV cache, numbered from 0. All requests of the model share them."""
        ...

    def decoder(self, sampling: SamplingParams) -> Decoder:
        """A fresh decoder. Called by submitting threads."""
        ...

    def seed(self, request: EngineRequest) -> int | None:
        """The seed of a request's first choice; None draws a random one for each choice."""
        ...

    def grammar(self, text: str) -> Grammar:
        """A fresh matcher of a serialised grammar, at its start. Called by submitting threads.

        Called once for a request: its choices get copies. Raises EngineError `invalid_grammar` for
        what it can't compile, `unsupported` if it knows no grammars.
        """
        ...

    def run(self, batch: Batch) -> Any:
        """One forward pass; returns what `sample` and `score` need. May raise.

        Reads token ids and pages of the batch's requests and writes keys and values of the chunks'
        tokens into their pages. Idempotent: after a failure chunks are run again, in other batches.
        """
        ...

    def score(self, scores: Any, batch: Batch) -> Sequence[Sequence[TokenLogprobs]]:
        """How likely the prompt's tokens behind each of `rows_to_score` are, for each chunk of
        `batch.scored`, which has some. May raise; changes no request.
        """
        ...

    def sample(
        self, scores: Any, requests: Sequence[Request]
    ) -> Sequence[SampledToken | EngineError]:
        """A token, or the reason why there is none, for each request in order.

        `requests` is `batch.sampled` of the batch that `scores` came from; never empty. It changes
        no request, as after a failure the same tokens are sampled again.
        """
        ...
