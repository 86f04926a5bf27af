"""Which web pages may call the API from a browser, see `MILLRACE_CORS_ORIGINS`. Off by default.

Outermost of all, so that refusals of every kind can be read by the page too, and a browser's
question what it may send is answered without a key and without a turn.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated

from pydantic import field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

ANY = "*"
MAX_AGE_S = 7_200  # for which a browser needn't ask again; Chrome remembers no longer

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s?#@*]+")
_METHODS = ("GET", "HEAD", "POST", "DELETE", "OPTIONS")
# What a page may read of an answer beside the few headers that it always may.
_EXPOSED = (
    "accept-ranges",
    "allow",
    "content-disposition",
    "content-range",
    "idempotency-replayed",
    "location",
    "openai-processing-ms",
    "retry-after",
    "retry-after-ms",
    "www-authenticate",
    "x-millrace-ignored",
    "x-millrace-job-id",
    "x-next-page",
    "x-ratelimit-limit-requests",
    "x-ratelimit-limit-tokens",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-remaining-tokens",
    "x-ratelimit-reset-requests",
    "x-ratelimit-reset-tokens",
    "x-request-id",
    "x-should-retry",
)


class CorsSettings(BaseSettings):
    """`*`, or origins with commas or blanks between them."""

    model_config = SettingsConfigDict(env_prefix="MILLRACE_", extra="ignore")

    cors_origins: Annotated[tuple[str, ...], NoDecode] = ()

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _split(cls, value: str | Sequence[str]) -> tuple[str, ...]:
        listed = re.split(r"[\s,]+", value) if isinstance(value, str) else value
        return tuple(origin.lower().rstrip("/") for origin in listed if origin)

    @field_validator("cors_origins")
    @classmethod
    def _check(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if origin not in (ANY, "null") and not _ORIGIN.fullmatch(origin):
                raise ValueError(f"'{origin}' is no origin, such as https://chat.example.com")
        return origins


def with_cors(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """The application for pages of these origins. Keys come in a header, so cookies are not
    allowed: a page can do nothing that the key it holds doesn't let it do.
    """
    if not origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=_METHODS,
        allow_headers=(ANY,),  # those that a client names, `authorization` too
        allow_private_network=True,  # a page of the web, and a Millrace on the machine before it
        expose_headers=_EXPOSED,
        max_age=MAX_AGE_S,
    )
