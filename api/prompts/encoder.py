"""Keeps tokenizing off the event loop: short prompts inline, long ones on a few threads."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from api import metrics
from api.prompts.codec import PromptCodec
from api.prompts.template import Messages
from tasks.errors import ContextLengthExceeded, ServiceUnavailable

# Up to here it takes less than a change of threads.
INLINE_CHARS = 2_000
# A token of byte-level vocabularies stands for at most its own length in text. Others fold runs of
# unknown characters into one; a text beyond this many characters a token is no prompt.
MIN_CHARS_PER_TOKEN_LIMIT = 16


class PromptEncoder:
    """A bounded thread pool for tokenizers. One an API process."""

    def __init__(self, *, num_threads: int, max_waiting: int) -> None:
        self._executor = ThreadPoolExecutor(num_threads, thread_name_prefix="tokenizer")
        self._num_threads = num_threads
        self._max_waiting = max_waiting
        self._num_pending = 0

    def close(self) -> None:
        """Drop what waits and end the threads."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def encode(
        self, codec: PromptCodec, prompt: str | Messages, *, context_length: int
    ) -> list[int]:
        """Token ids of a text or a chat. Raises InvalidPrompt, ContextLengthExceeded."""
        num_chars = _num_chars(prompt)
        _refuse_hopeless(codec, num_chars, context_length)
        began = time.monotonic()
        ids = await self._run(lambda: _encode(codec, prompt), is_short=num_chars <= INLINE_CHARS)
        metrics.prompt_seconds.observe(time.monotonic() - began)
        return ids

    async def _run(self, encode: Callable[[], list[int]], *, is_short: bool) -> list[int]:
        if is_short:
            return encode()
        if self._num_pending >= self._num_threads + self._max_waiting:
            raise ServiceUnavailable("Too many long prompts are being read at the moment.")
        self._num_pending += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, encode)
        finally:
            self._num_pending -= 1


def _encode(codec: PromptCodec, prompt: str | Messages) -> list[int]:
    return codec.encode_prompt(prompt) if isinstance(prompt, str) else codec.encode_messages(prompt)


def _num_chars(prompt: str | Messages) -> int:
    if isinstance(prompt, str):
        return len(prompt)
    return sum(len(text) for message in prompt for text in message.values())


def _refuse_hopeless(codec: PromptCodec, num_chars: int, context_length: int) -> None:
    """Say no before tokenizing what can't fit, however its characters fall into tokens."""
    chars_per_token = max(codec.longest_token, MIN_CHARS_PER_TOKEN_LIMIT)
    if num_chars > context_length * chars_per_token:
        raise ContextLengthExceeded(
            f"This model's context length is {context_length} tokens;"
            f" a prompt of {num_chars} characters can't fit.",
            param="messages",
        )
