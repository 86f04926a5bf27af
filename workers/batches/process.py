"""Runs the driver beside Celery, in a thread with an event loop of its own."""

from __future__ import annotations

import asyncio
import ctypes
import threading
from contextlib import AsyncExitStack, suppress
from typing import Any

import structlog
from celery import bootsteps
from celery.signals import worker_init

from api.limits.limiter import NoLimits
from api.services import fresh_registry, open_admission
from store.file_contents import FileContents
from store.pools import async_pool, sync_pool
from store.settings import DatabaseSettings, FileSettings
from tasks.logs import configure_logs
from tasks.metrics import serve_metrics
from tasks.vital import vital
from workers.batches.driver import Driver

log = structlog.get_logger(__name__)

NUM_TOKENIZER_THREADS = 1
MAX_WAITING_PROMPTS = 256
_MALLOC = {-8: 2, -3: 128 << 10, -1: 128 << 10}  # arenas; bytes from which blocks are mapped; trim


class DriverThread(bootsteps.StartStopStep):
    """Starts with the worker, Redis or not: hints that get lost are sent again by others."""

    def __init__(self, worker: Any, **options: Any) -> None:
        super().__init__(worker, **options)
        self._task: asyncio.Task[None] | None = None
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name="batch-driver", daemon=True)

    def start(self, _worker: Any) -> None:
        """Blocks for nothing."""
        self._thread.start()
        serve_metrics()

    def stop(self, _worker: Any) -> None:
        """Ends between two statements; another driver goes on when the lease is over."""
        self._is_stopping = True
        if self._task is not None:
            with suppress(RuntimeError):  # its loop is closed: it has ended
                self._task.get_loop().call_soon_threadsafe(self._task.cancel)
        self._thread.join(timeout=10)

    def _run(self) -> None:
        with vital("batch-driver"):
            try:
                asyncio.run(self._main())
            except asyncio.CancelledError:
                if not self._is_stopping:
                    raise

    async def _main(self) -> None:
        self._task = asyncio.current_task()
        database = DatabaseSettings()
        async with AsyncExitStack() as stack:
            pool = sync_pool(database.worker, application_name="millrace-batches", max_size=4)
            pool.open()
            stack.callback(pool.close)
            api_pool = async_pool(database.api, application_name="millrace-batches", max_size=4)
            await api_pool.open()
            stack.push_async_callback(api_pool.close)
            registry = await stack.enter_async_context(fresh_registry(api_pool))
            admission = await open_admission(
                stack,
                api_pool,
                registry,
                limiter=NoLimits(),  # lines are in no hurry, and WINDOW bounds them
                num_threads=NUM_TOKENIZER_THREADS,
                max_waiting=MAX_WAITING_PROMPTS,
            )
            driver = Driver(
                pool=pool,
                api_pool=api_pool,
                admission=admission,
                contents=FileContents(FileSettings().files_url),
            )
            log.info("batch_driver_started")
            await driver.run()


@worker_init.connect
def use_threads(sender: Any, **_: object) -> None:
    """Tasks, if any, run in this process: a forked child would hold copies of its connections."""
    configure_logs()
    sender.pool_cls = "threads"
    _give_memory_back()


def _give_memory_back() -> None:
    """Large blocks are mapped one by one and returned once freed, and threads share their heaps:
    else what each thread held once would stay with the process.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # of glibc alone
        for option, value in _MALLOC.items():
            libc.mallopt(option, value)
