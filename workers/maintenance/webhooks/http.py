"""One POST to an address that was checked: what an attacker's endpoint could make of us ends here.

Names are resolved here, and the connection goes to the address that was checked, so that a name
can't be one thing when looked at and another when dialled. TLS is verified against the name. No
redirects, no proxies, no cookies; of the answer a few KB are read, and nothing is kept.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import certifi
import httpcore

from tasks.webhook_urls import RefusedAddress, UrlPolicy

CONNECT_TIMEOUT_S = 3.0
TOTAL_TIMEOUT_S = 10.0  # from the name to the end of the answer, however it trickles in
MAX_ANSWER_BYTES = 4_096


@dataclass(frozen=True, slots=True)
class Answer:
    """What an endpoint said."""

    status_code: int
    retry_after_s: float | None


class DeliveryError(Exception):
    """No answer. The text says why, and is shown to the tenant."""


class WebhookHttp:
    """Sends. On one event loop."""

    def __init__(self, policy: UrlPolicy) -> None:
        self._policy = policy
        self._tls = ssl.create_default_context(cafile=certifi.where())

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """Raises DeliveryError."""
        try:
            self._policy.check_url(url)
            async with asyncio.timeout(TOTAL_TIMEOUT_S):
                return await self._post(url, headers, body)
        except RefusedAddress as error:
            raise DeliveryError(str(error)) from None
        except TimeoutError:
            raise DeliveryError(f"No answer within {TOTAL_TIMEOUT_S:g} s.") from None
        except (httpcore.NetworkError, httpcore.TimeoutException, OSError) as error:
            raise DeliveryError(_why(error)) from None
        except httpcore.ProtocolError:
            raise DeliveryError("The answer is not HTTP.") from None

    async def _post(self, url: str, headers: Mapping[str, str], body: bytes) -> Answer:
        timeouts = {"connect": CONNECT_TIMEOUT_S, "read": TOTAL_TIMEOUT_S, "write": TOTAL_TIMEOUT_S}
        async with (
            httpcore.AsyncConnectionPool(
                ssl_context=self._tls, network_backend=_CheckedNetwork(self._policy)
            ) as pool,
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

    def __init__(self, policy: UrlPolicy) -> None:
        self._policy = policy
        self._network = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Raises RefusedAddress, OSError and httpcore's errors."""
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = [str(sockaddr[0]) for *_, sockaddr in found]
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
