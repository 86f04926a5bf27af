"""Where webhooks may be sent: nowhere a tenant could reach through us and not by himself.

The URL is checked when an endpoint is made, the addresses behind its name whenever something is
sent there: a name may point elsewhere by then (OWASP API7:2023, server side request forgery).
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

MAX_URL = 2_048
MAX_NAME = 253  # of a host, by RFC 1035; each of its labels has up to 63 characters
PORTS = (443, 8443)

# Global by what the library says, and yet ways to hosts of ours: IPv4 inside of IPv6, relays,
# ranges that were private once, a cloud's service for its guests.
_REFUSED = tuple(
    ipaddress.ip_network(text)
    for text in (
        "::ffff:0:0/96",
        "64:ff9b::/96",
        "64:ff9b:1::/48",
        "2002::/16",
        "2001::/32",
        "192.0.0.0/24",
        "192.88.99.0/24",
        "fec0::/10",
        "3fff::/20",
        "::/96",
        "168.63.129.16/32",
    )
)


_NAME = re.compile(r"(?:[a-z0-9_-]{1,63}\.)*[a-z0-9_-]{1,63}\.?")


class RefusedAddress(ValueError):
    """Nothing is sent there. The text says why and may be shown."""


@dataclass(frozen=True, slots=True)
class UrlPolicy:
    """`allow_private` is for tests and for platforms whose tenants are all of one house."""

    allow_private: bool = False

    def check_url(self, url: str) -> None:
        """Raise RefusedAddress for a URL that nothing is ever sent to."""
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            raise RefusedAddress("This is not a URL.") from None
        if len(url) > MAX_URL or not url.isascii() or not url.isprintable() or " " in url:
            raise RefusedAddress(f"A URL has at most {MAX_URL} printable ASCII characters.")
        if parts.scheme != "https" and not (self.allow_private and parts.scheme == "http"):
            raise RefusedAddress("The URL must begin with https://.")
        if not host:
            raise RefusedAddress("The URL names no host.")
        # A password comes with a user, if with one of no letters.
        if parts.username is not None or parts.fragment:
            raise RefusedAddress("The URL must hold no user, password or fragment.")
        if port not in (None, *PORTS) and not self.allow_private:
            raise RefusedAddress(f"The port must be one of {', '.join(map(str, PORTS))}.")
        if _is_address(host):
            self.check_address(host)
        elif not _NAME.fullmatch(host) or len(host) > MAX_NAME:
            raise RefusedAddress("The URL's host is not a name that can exist.")

    def check_address(self, address: str) -> None:
        """Raise RefusedAddress unless anybody could reach it from anywhere."""
        if self.allow_private:
            return
        ip = ipaddress.ip_address(address.partition("%")[0])
        is_open = ip.is_global and not (ip.is_multicast or ip.is_reserved or "%" in address)
        if not is_open or any(ip in network for network in _REFUSED):
            raise RefusedAddress("The host's address is not a public one.")


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True
