"""Builds what the routes use, once a process, and takes it down again."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Any

from psycopg import Error as DatabaseError
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from api.admission import Admission
from api.auth import Authenticator
from api.cancelling import Canceller
from api.clock import postgres_time
from api.files.download import Downloads
from api.files.slots import TransferSlots
from api.files.store import FileStore
from api.files.upload import Uploads
from api.garbage import Collector
from api.grammars.checker import GrammarChecker
from api.hints import HintSender
from api.limits.bodies import LargeBodies
from api.limits.counters import Counters
from api.limits.limiter import RateLimiter, TenantLimits
from api.limits.places import Places
from api.limits.refusal_pace import RefusalPace
from api.limits.refusals import Refusals
from api.limits.turns import TURN_SPACING, TURN_WAIT_S
from api.limits.unpaid import Unpaid, UnpaidLimits
from api.long_work import LongWork
from api.prompts.encoder import PromptEncoder
from api.prompts.registry import ModelRegistry
from api.readiness import SharedLook, Workers, look_at_stores
from api.settings import (
    MAX_DOWNLOADS,
    MAX_TENANT_DOWNLOADS,
    MAX_TENANT_UPLOADS,
    MAX_UPLOADS,
    MAX_WEBHOOK_TESTS_PER_H,
    SPARE_REQUESTS,
    ApiSettings,
)
from api.streams.hub import StreamHub
from api.streams.open_streams import OpenStreams
from api.streams.reader import Sources
from api.streams.subscription import Subscription
from store.api_keys import PEPPER_VERSION
from store.batches import BatchQuota
from store.file_contents import FileContents
from store.pools import AsyncPool, async_pool
from store.settings import DatabaseSettings, FileSettings, WebhookSettings
from store.tenant_gate import TenantGate
from tasks.errors import ServiceUnavailable
from tasks.settings import RedisSettings
from tasks.webhook_urls import UrlPolicy

REDIS_TIMEOUT_S = 2.0
REDIS_CONNECTIONS = 32  # reads of logs at a time; more wait
REDIS_CHECKOUT_S = 10.0
LIMITS_TIMEOUT_S = 0.5  # a request waits for no longer before it is counted without Redis


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """What a route may ask for."""

    pool: AsyncPool  # what tenants read and change, each behind its own
    core_pool: AsyncPool  # admission, keys, catalog, health, ends of streams
    collector: Collector
    open_requests: Places
    waiting_requests: Places  # those of them that wait for a job
    refusals: RefusalPace
    turns: TenantGate  # of those of them that don't
    large_bodies: LargeBodies
    redis: Redis
    authenticator: Authenticator
    registry: ModelRegistry
    admission: Admission
    hub: StreamHub
    streams: OpenStreams
    canceller: Canceller
    uploads: Uploads
    downloads: Downloads
    webhook_urls: UrlPolicy
    batch_quota: BatchQuota
    unpaid: UnpaidLimits
    long_work: LongWork
    look_at_stores: SharedLook[tuple[Workers, object]]

    @property
    def sources(self) -> Sources:
        """Where stream readers get their events."""
        return Sources(self.pool, self.redis, self.long_work, self.turns)


@asynccontextmanager
async def open_services(
    settings: ApiSettings, *, max_connections: int | None = None
) -> AsyncIterator[Services]:
    """Neither Postgres nor Redis need be there yet: readiness says what is missing."""
    database = DatabaseSettings()
    async with AsyncExitStack() as stack:
        core_pool = await _open_pool(stack, database, "millrace-api")
        # So that two who ask for all they can leave connections to the others.
        share = max(1, database.database_pool_size * 2 // 5)
        pool = await _open_pool(stack, database, "millrace-api-tenants", max_tenant=share)
        urls = RedisSettings()
        redis = redis_client(urls.stream)
        stack.push_async_callback(redis.aclose)
        listening_redis = redis_client(urls.stream)
        stack.push_async_callback(listening_redis.aclose)
        limits_redis = redis_client(
            urls.limits, timeout_s=LIMITS_TIMEOUT_S, checkout_s=LIMITS_TIMEOUT_S
        )
        stack.push_async_callback(limits_redis.aclose)
        hub = StreamHub(core_pool, partial(Subscription, listening_redis))
        await hub.start()
        stack.push_async_callback(hub.stop)
        canceller = Canceller(pool, redis, hub, grace_s=settings.disconnect_grace_s)
        stack.push_async_callback(canceller.close)
        registry = await stack.enter_async_context(fresh_registry(core_pool))
        streams = OpenStreams(settings.max_streams)
        stack.enter_context(_before_shutdown(streams.end_all))
        collector = Collector()
        stack.callback(asyncio.create_task(collector.run()).cancel)
        store = _open_files(stack, settings)
        large_bodies = LargeBodies()
        long_work = LongWork()
        stack.callback(long_work.close)
        yield Services(
            pool=pool,
            core_pool=core_pool,
            collector=collector,
            open_requests=_places(settings, max_connections, spare=SPARE_REQUESTS),
            waiting_requests=_places(settings, max_connections),
            refusals=RefusalPace(),
            turns=TenantGate(settings.max_tenant_turns, TURN_WAIT_S, spacing=TURN_SPACING),
            large_bodies=large_bodies,
            redis=redis,
            authenticator=Authenticator(core_pool, _peppers(settings)),
            registry=registry,
            admission=await open_admission(
                stack,
                core_pool,
                registry,
                limiter=TenantLimits(Counters(limits_redis), Refusals(limits_redis)),
                num_threads=settings.tokenizer_threads,
                max_waiting=settings.tokenizer_queue,
            ),
            hub=hub,
            streams=streams,
            canceller=canceller,
            uploads=Uploads(
                pool=pool,
                store=store,
                slots=TransferSlots(MAX_UPLOADS, MAX_TENANT_UPLOADS),
                bodies=large_bodies,
                quota_bytes=settings.files_quota_bytes,
            ),
            downloads=Downloads(
                store=store, slots=TransferSlots(MAX_DOWNLOADS, MAX_TENANT_DOWNLOADS)
            ),
            webhook_urls=UrlPolicy(WebhookSettings().allow_private),
            batch_quota=BatchQuota(settings.max_batches, settings.max_batch_bytes),
            unpaid=UnpaidLimits(
                limits_redis,
                {
                    Unpaid.BATCHES: settings.max_batches_per_h,
                    Unpaid.WEBHOOK_TESTS: MAX_WEBHOOK_TESTS_PER_H,
                },
            ),
            long_work=long_work,
            look_at_stores=look_at_stores(core_pool, redis),
        )


async def _open_pool(
    stack: AsyncExitStack,
    database: DatabaseSettings,
    name: str,
    *,
    max_tenant: int | None = None,
) -> AsyncPool:
    pool = async_pool(
        database.api,
        application_name=name,
        max_size=database.database_pool_size,
        max_tenant=max_tenant,
    )
    await pool.open()
    stack.push_async_callback(pool.close)
    return pool


def _places(settings: ApiSettings, max_connections: int | None, *, spare: int = 0) -> Places:
    """No tenant gets more than three quarters of a process that can't carry many connections."""
    most = max_connections * 3 // 4 if max_connections else sys.maxsize
    return Places(
        max_tenant=min(settings.max_tenant_waiting + spare, most),
        max_key=settings.max_key_waiting + spare,
    )


def redis_client(
    url: str, *, timeout_s: float = REDIS_TIMEOUT_S, checkout_s: float = REDIS_CHECKOUT_S
) -> Redis:
    """A client that fails fast and leaves retries to its callers, who know what was missed."""
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=REDIS_CONNECTIONS,
        timeout=checkout_s,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        socket_keepalive=True,
        retry=Retry(NoBackoff(), 0),
    )
    return Redis.from_pool(pool)


async def open_admission(
    stack: AsyncExitStack,
    pool: AsyncPool,
    registry: ModelRegistry,
    *,
    limiter: RateLimiter,
    num_threads: int,
    max_waiting: int,
) -> Admission:
    """What admits jobs, in this process or in one that runs batches; `stack` closes it."""
    await stack.enter_async_context(postgres_time(pool))
    encoder = PromptEncoder(num_threads=num_threads, max_waiting=max_waiting)
    stack.callback(encoder.close)
    grammars = GrammarChecker()
    stack.push_async_callback(grammars.close)
    hints = HintSender()
    hints.start()
    stack.push_async_callback(asyncio.to_thread, hints.stop)
    return Admission(
        pool=pool,
        registry=registry,
        encoder=encoder,
        grammars=grammars,
        hints=hints,
        limiter=limiter,
    )


def _open_files(stack: AsyncExitStack, settings: ApiSettings) -> FileStore:
    contents = FileContents(FileSettings().files_url)
    store = FileStore(contents, num_threads=settings.file_threads)
    stack.push_async_callback(asyncio.to_thread, store.close)
    return store


@asynccontextmanager
async def fresh_registry(pool: AsyncPool) -> AsyncIterator[ModelRegistry]:
    """The catalog, kept up to date by a task."""
    registry = ModelRegistry(pool)
    with suppress(ServiceUnavailable, DatabaseError):
        await registry.refresh()
    task = asyncio.create_task(registry.keep_fresh())
    try:
        yield registry
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class _before_shutdown:
    """Calls `action` on SIGTERM and SIGINT, before the server's own handler.

    The server waits for open responses before it tells the app to shut down, and streams would
    keep it waiting.
    """

    def __init__(self, action: Callable[[], None]) -> None:
        self._action = action
        self._loop = asyncio.get_running_loop()
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> None:
        # Only the main thread may set handlers; elsewhere (tests) nobody sends signals either.
        with suppress(ValueError):
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._on_signal)

    def __exit__(self, *_: object) -> None:
        with suppress(ValueError):
            for number, handler in self._previous.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._loop.call_soon_threadsafe(self._action)
        previous = self._previous[signal.Signals(number)]
        if callable(previous):
            previous(number, frame)


def _peppers(settings: ApiSettings) -> dict[int, bytes]:
    return {PEPPER_VERSION: settings.key_pepper.get_secret_value().encode()}
