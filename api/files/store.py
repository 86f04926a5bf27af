"""The content store for coroutines: its calls block, so a few threads make them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

import structlog

from store.file_contents import FileContents
from tasks.errors import ServiceUnavailable

log = structlog.get_logger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


class FileStore:
    """One an API process. More calls than threads wait for one, and nothing else waits for them."""

    def __init__(self, contents: FileContents, *, num_threads: int) -> None:
        self.contents = contents
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="files")

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call it in a thread. Raises ServiceUnavailable if the store fails.

        A cancelled caller leaves at once, while the call still runs.
        """
        try:
            return await asyncio.wrap_future(self._threads.submit(function, *args, **kwargs))
        except OSError as error:
            log.warning("file_store_failed", error=type(error).__name__)
            raise ServiceUnavailable("Files can't be stored or read at the moment.") from error

    def run_later(self, function: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        """Call it in a thread, soon, and don't wait."""
        self._threads.submit(function, *args, **kwargs)

    def close(self) -> None:
        """Calls that run are waited for."""
        self._threads.shutdown(cancel_futures=True)
