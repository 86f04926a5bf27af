"""Where the server is, and how long to wait for it."""

from __future__ import annotations

import os

import httpx

from millrace.errors import MillraceError

DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULT_MAX_RETRIES = 2
TIMEOUT_S = 30.0
CONNECT_TIMEOUT_S = 5.0
# A stream says something every 15 s.
STREAM_TIMEOUT = httpx.Timeout(45.0, connect=CONNECT_TIMEOUT_S)


def base_url(url: str | None) -> str:
    """An argument, else MILLRACE_URL, else the address `make up` uses. Raises MillraceError."""
    found = (url or os.environ.get("MILLRACE_URL") or DEFAULT_URL).strip().rstrip("/")
    if not found.startswith(("http://", "https://")):
        raise MillraceError(f"The server's URL must begin with http:// or https://: {found}")
    return found


def headers(api_key: str | None) -> dict[str, str]:
    """With an argument's key, else that of MILLRACE_API_KEY. Raises MillraceError without one."""
    key = (api_key or os.environ.get("MILLRACE_API_KEY") or "").strip()
    if not key:
        raise MillraceError("No API key: pass api_key or set MILLRACE_API_KEY.")
    if not (key.isascii() and key.isprintable()):  # never shown: it may be a secret of something
        raise MillraceError("The API key holds characters that no key has.")
    return {"Authorization": f"Bearer {key}", "User-Agent": "millrace-python/0.1"}


def timeout(extra_s: float) -> httpx.Timeout:
    """For one call."""
    return httpx.Timeout(TIMEOUT_S + extra_s, connect=CONNECT_TIMEOUT_S)
