"""Keeps tokenizing off the event loop: short prompts inline, long ones on a few threads."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar
from uuid import UUID

from api import metrics
from api.prompts.codec import PromptCodec
from api.prompts.prompt import (
    ChatPrompt,
    Prompt,
    PromptList,
    TextPrompt,
    TokenPrompt,
    is_short,
    num_chars,
)
from store.tenant_gate import TenantGate
from tasks.errors import ContextLengthExceeded, InvalidPrompt, ServiceUnavailable

# Up to here it takes less than a change of threads.
INLINE_CHARS = 2_000
MAX_WAIT_S = 10.0  # of a prompt behind others of its tenant
# A token of byte-level vocabularies stands for at most its own length in text. Others fold runs of
# unknown characters into one; a text beyond this many characters a token is no prompt.
MIN_CHARS_PER_TOKEN_LIMIT = 16


T = TypeVar("T")


class PromptEncoder:
    """A bounded thread pool for tokenizers. One an API process."""

    def __init__(self, *, num_threads: int, max_waiting: int) -> None:
        self._executor = ThreadPoolExecutor(num_threads, thread_name_prefix="tokenizer")
        self._num_threads = num_threads
        # One that sends many leaves threads to the others; with one thread they take turns.
        self._gate = TenantGate(max(1, num_threads // 2), MAX_WAIT_S)
        self._max_waiting = max_waiting
        self._num_pending = 0

    def close(self) -> None:
        """Drop what waits and end the threads."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def encode(
        self,
        codec: PromptCodec,
        prompt: Prompt,
        *,
        tenant_id: UUID,
        context_length: int,
        param: str,
    ) -> list[list[int]]:
        """Token ids of each prompt of a request, which the client calls `param`.

        Raises InvalidPrompt, ContextLengthExceeded, ServiceUnavailable when too many wait, and
        RateLimitExceeded when too many of the tenant's do.
        """

        prompts = prompt.prompts if isinstance(prompt, PromptList) else [prompt]

        def encode() -> list[list[int]]:
            for each in prompts:
                _refuse_hopeless(codec, num_chars(each), context_length, param)
            return [_encode(codec, each) for each in prompts]

        began = time.monotonic()
        if is_short(prompt, INLINE_CHARS):
            ids = encode()
        else:
            ids = await self.run(encode, tenant_id=tenant_id)
        metrics.prompt_seconds.observe(time.monotonic() - began)
        return ids

    async def run(self, work: Callable[[], T], *, tenant_id: UUID) -> T:
        """Work on a long prompt, on a thread, in the tenant's turn.

        Raises ServiceUnavailable and RateLimitExceeded as `encode` does, and what the work raises.
        """
        if self._num_pending >= self._num_threads + self._max_waiting:
            raise ServiceUnavailable("Too many long prompts are being read at the moment.")
        self._num_pending += 1
        try:
            async with self._gate.turn(tenant_id):
                return await asyncio.get_running_loop().run_in_executor(self._executor, work)
        finally:
            self._num_pending -= 1


def _encode(codec: PromptCodec, prompt: ChatPrompt | TextPrompt | TokenPrompt) -> list[int]:
    match prompt:
        case TextPrompt(text):
            return codec.encode_prompt(text)
        case ChatPrompt():
            return codec.encode_chat(prompt)
        case TokenPrompt(token_ids):
            if any(token_id >= codec.vocab_size for token_id in token_ids):
                message = f"The prompt names a token beyond the vocabulary of {codec.vocab_size}."
                raise InvalidPrompt(message, param="prompt")
            return list(token_ids)


def _refuse_hopeless(codec: PromptCodec, length: int, context_length: int, param: str) -> None:
    """Say no before tokenizing what can't fit, however its characters fall into tokens."""
    chars_per_token = max(codec.longest_token, MIN_CHARS_PER_TOKEN_LIMIT)
    if length > context_length * chars_per_token:
        raise ContextLengthExceeded(
            f"This model's maximum context length is {context_length} tokens;"
            f" a prompt of {length} characters can't fit.",
            param=param,
        )
