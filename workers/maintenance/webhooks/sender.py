"""The sender: takes deliveries that are due and posts them, many endpoints at a time, few of them
one tenant's, and few requests to each. Any number of maintenance workers may send; an endpoint that
is slow, or a tenant with many such, keeps nobody else waiting.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import structlog
from psycopg import Error as DatabaseError
from psycopg_pool import PoolTimeout

from store import webhook_sending
from store.aside import Aside
from store.faults import reason
from store.pools import SyncPool, sync_pool
from tasks.vital import vital
from tasks.webhook_urls import UrlPolicy
from workers.maintenance import metrics
from workers.maintenance.webhooks.backoff import delay_s
from workers.maintenance.webhooks.http import Answer, DeliveryError, WebhookHttp
from workers.maintenance.webhooks.message import event_body, signed_headers
from workers.maintenance.webhooks.names import Names, Resolve, system_addresses

INTERVAL_S = 1.0
MAX_IN_FLIGHT = 256  # sixteen tenants with nothing but slow endpoints
GONE = 410

log = structlog.get_logger(__name__)


class WebhookSender(threading.Thread):
    """A thread with an event loop of its own; statements run on threads of that loop."""

    def __init__(
        self, database_url: str, policy: UrlPolicy, *, resolve: Resolve = system_addresses
    ) -> None:
        super().__init__(name="webhooks", daemon=True)
        self._pool: SyncPool = sync_pool(
            database_url, application_name="millrace-webhooks", max_size=2, min_size=0
        )
        self._policy = policy
        self._resolve = resolve
        self._stopped = threading.Event()
        self._busy: dict[UUID, int] = {}  # deliveries in flight, by endpoint
        self._aside = Aside()  # deliveries that can't be taken
        self._after = webhook_sending.FIRST  # the endpoint behind which the next round begins

    def stop(self, timeout_s: float = 12.0) -> None:
        """End after what is in flight; what isn't noted in time is sent again by another."""
        self._stopped.set()
        if self.is_alive():
            self.join(timeout_s)

    def run(self) -> None:
        """The thread's body."""
        with vital(self.name), self._pool:
            while not self._stopped.is_set():
                try:
                    asyncio.run(self._send_all())
                except Exception:  # the thread's boundary: what was in flight is sent again
                    log.exception("webhook_sender_failed")
                    self._busy.clear()
                    self._stopped.wait(INTERVAL_S)

    async def _send_all(self) -> None:
        http = WebhookHttp(self._policy, Names(self._resolve))
        in_flight: set[asyncio.Task[None]] = set()
        while not self._stopped.is_set():
            for delivery in await self._take(MAX_IN_FLIGHT - len(in_flight)):
                task = asyncio.create_task(self._deliver(http, delivery))
                in_flight.add(task)
                task.add_done_callback(in_flight.discard)
            # What ends makes room for more at once; what is new waits for a moment.
            pause = [*in_flight, asyncio.create_task(asyncio.sleep(INTERVAL_S))]
            await asyncio.wait(pause, return_when=asyncio.FIRST_COMPLETED)
            pause[-1].cancel()
        await asyncio.gather(*in_flight)

    async def _take(self, room: int) -> list[dict[str, Any]]:
        if room <= 0:
            return []
        try:
            round_ = await self._call(webhook_sending.due_endpoints, after=self._after)
            self._after = round_.last
            found = await self._take_from(round_.ids, room) if round_.ids else []
        except (DatabaseError, PoolTimeout) as error:
            log.warning("webhooks_not_taken", error=type(error).__name__)
            return []
        for delivery in found:
            endpoint = delivery["endpoint_id"]
            self._busy[endpoint] = self._busy.get(endpoint, 0) + 1
        return found

    async def _take_from(self, due: Sequence[UUID], room: int) -> list[dict[str, Any]]:
        busy = list(self._busy)
        taken = await self._call(
            webhook_sending.take,
            due=due,
            busy=busy,
            limit=room,
            aside=self._aside.ids(),
            set_aside=self._set_aside,
        )
        return list(taken)

    def _set_aside(self, delivery_id: UUID, error: DatabaseError) -> None:
        metrics.UNITS_FAILED.labels("webhooks").inc()
        num_tries = self._aside.add(delivery_id)
        log.error("webhook_not_taken", id=delivery_id.hex, tries=num_tries, error=reason(error))

    async def _deliver(self, http: WebhookHttp, delivery: dict[str, Any]) -> None:
        """One attempt, and its outcome. An outcome that can't be noted is an attempt more."""
        try:
            answer, error = await _attempt(http, delivery)
            await self._note(delivery, answer, error)
        except Exception as failure:  # one delivery's boundary: its lease brings it back
            metrics.UNITS_FAILED.labels("webhook_outcomes").inc()
            log.warning("webhook_outcome_lost", error=type(failure).__name__)
        finally:
            self._release(delivery["endpoint_id"])

    async def _note(
        self, delivery: dict[str, Any], answer: Answer | None, error: str | None
    ) -> None:
        metrics.WEBHOOKS.labels("failed" if error else "delivered").inc()
        if error is None:
            assert answer is not None
            await self._call(webhook_sending.note_delivered, delivery, answer.status_code)
            return
        is_disabled = await self._call(
            webhook_sending.note_failed,
            delivery,
            status_code=answer.status_code if answer else None,
            error=error,
            delay_s=delay_s(delivery["attempts"], asked_s=answer.retry_after_s if answer else None),
            is_gone=answer is not None and answer.status_code == GONE,
        )
        if is_disabled:
            log.warning("webhook_endpoint_disabled", endpoint_id=delivery["endpoint_id"].hex)

    def _release(self, endpoint: UUID) -> None:
        self._busy[endpoint] -= 1
        if not self._busy[endpoint]:
            del self._busy[endpoint]

    async def _call(self, function: Any, *arguments: Any, **named: Any) -> Any:
        def call() -> Any:
            with self._pool.connection() as connection:
                return function(connection, *arguments, **named)

        return await asyncio.to_thread(call)


async def _attempt(http: WebhookHttp, delivery: dict[str, Any]) -> tuple[Answer | None, str | None]:
    """The answer, if any, and what is wrong, if anything."""
    try:
        body = event_body(delivery)
        headers = signed_headers(delivery, body, now_s=delivery["taken_at_s"])
        answer = await http.post(delivery["tenant_id"], delivery["url"], headers, body)
    except DeliveryError as failure:
        return None, str(failure)
    except Exception:  # one delivery's boundary: a failure like others, tried again for a day
        log.exception("webhook_attempt_failed", delivery_id=str(delivery["id"]))
        return None, "The request could not be sent."
    return answer, None if 200 <= answer.status_code < 300 else _refusal(answer)


def _refusal(answer: Answer) -> str:
    if 300 <= answer.status_code < 400:
        return f"The endpoint answered {answer.status_code}; redirects are not followed."
    return f"The endpoint answered {answer.status_code}."
