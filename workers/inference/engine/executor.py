"""What the step loop needs of one model: run a batch, sample from it. The seam under the engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from workers.inference.engine.detokenizer import Decoder
from workers.inference.engine.errors import EngineError
from workers.inference.engine.protocol import EngineRequest, ModelInfo
from workers.inference.engine.request import Request
from workers.inference.engine.scheduler import Batch


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
        """Slots of the KV cache."""
        ...

    def decoder(self) -> Decoder:
        """A fresh decoder. Called by submitting threads."""
        ...

    def seed(self, request: EngineRequest) -> int | None:
        """The seed for a request; None draws a random one."""
        ...

    def run(self, batch: Batch) -> Any:
        """One forward pass; fills the KV cache. Returns what `sample` needs. May raise."""
        ...

    def sample(self, scores: Any, requests: Sequence[Request]) -> Sequence[int | EngineError]:
        """A token, or the reason why there is none, for each request in order."""
        ...
