"""One POST to an address that was checked: what an attacker's endpoint could make of us ends here.

Names are resolved here, and the connection goes to the address that was checked, so that a name
can't be one thing when looked at and another when dialled. TLS is verified against the name. No
redirects, no proxies, no cookies; of the answer a few KB are read, and nothing is kept.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import UUID

import certifi
import httpcore

from tasks.webhook_urls import RefusedAddress, UrlPolicy
from workers.maintenance.webhooks.names import Names

CONNECT_TIMEOUT_S = 3.0
TOTAL_TIMEOUT_S = 10.0  # from the name to the end of the answer, however it trickles in
MAX_ANSWER_BYTES = 4_096

LookUp = Callable[[str, int], Awaitable[list[str]]]


@dataclass(frozen=True, slots=True)
class Answer:
    """What an endpoint said."""

    status_code: int
    retry_after_s: float | None


class DeliveryError(Exception):
    """No answer. The text says why, and is shown to the tenant."""


class WebhookHttp:
    """Sends. On one event loop."""

    def __init__(
        self, policy: UrlPolicy, names: Names, *, timeout_s: float = TOTAL_TIMEOUT_S
    ) -> None:
        self._policy = policy
        self._names = names
        self._timeout_s = timeout_s
        self._tls = ssl.create_default_context(cafile=certifi.where())

    async def post(
        self, tenant_id: UUID, url: str, headers: Mapping[str, str], body: bytes
    ) -> Answer:
        """Raises DeliveryError. The tenant is whose endpoint it is."""
        network = _CheckedNetwork(self._policy, partial(self._names.addresses, tenant_id))
        try:
            self._policy.check_url(url)
            async with asyncio.timeout(self._timeout_s):
                return await self._post(network, url, headers, body)
        except RefusedAddress as error:
            raise DeliveryError(str(error)) from None
        except TimeoutError:
            raise DeliveryError(f"No answer within {self._timeout_s:g} s.") from None
        except UnicodeError:  # of the codec for names
            raise DeliveryError("The host's name can't be resolved.") from None
        except (httpcore.NetworkError, httpcore.TimeoutException, OSError) as error:
            raise DeliveryError(_why(error)) from None
        except httpcore.ProtocolError:
            raise DeliveryError("The answer is not HTTP.") from None

    async def _post(
        self, network: _CheckedNetwork, url: str, headers: Mapping[str, str], body: bytes
    ) -> Answer:
        timeouts = {"connect": CONNECT_TIMEOUT_S, "read": self._timeout_s, "write": self._timeout_s}
        async with (
            httpcore.AsyncConnectionPool(ssl_context=self._tls, network_backend=network) as pool,
            pool.stream(
                "POST",
                url,
                headers=[("connection", "close"), *headers.items()],
                content=body,
                extensions={"timeout": timeouts},
            ) as response,
        ):
            num_bytes = 0
            async for chunk in response.aiter_stream():
                num_bytes += len(chunk)
                if num_bytes > MAX_ANSWER_BYTES:
                    break
            return Answer(response.status, _retry_after_s(response.headers))


class _CheckedNetwork(httpcore.AsyncNetworkBackend):
    """Dials the first address of a name, if all of them are open to the world."""

    def __init__(self, policy: UrlPolicy, look_up: LookUp) -> None:
        self._policy = policy
        self._look_up = look_up
        self._network = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Raises RefusedAddress, OSError, UnicodeError and httpcore's errors."""
        addresses = await self._look_up(host, port)
        for address in addresses:
            self._policy.check_address(address)
        return await self._network.connect_tcp(
            addresses[0], port, timeout, local_address, socket_options
        )


def _retry_after_s(headers: Iterable[tuple[bytes, bytes]]) -> float | None:
    for name, value in headers:
        if name.lower() == b"retry-after" and value.isdigit() and len(value) < 7:
            return float(value)
    return None


def _why(error: Exception) -> str:
    if isinstance(error, socket.gaierror):
        return "The host's name can't be resolved."
    if isinstance(error, httpcore.TimeoutException):
        return "The connection timed out."
    cause = error.__cause__ or error.__context__
    if isinstance(error, ssl.SSLError) or "SSL" in type(cause).__name__ or "SSL" in str(error):
        return "TLS failed: the certificate or the protocol is not acceptable."
    return "The connection failed."
