"""API keys, pure: `mlr_live_<key_id>_<secret><crc>`. The database holds an HMAC, never a key.

The checksum lets a scanner of source code, and the API before any query, tell a key from noise.
The secret has 256 random bits, so a slow password hash would add nothing but a way to load the API.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import string
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

PREFIX = "mlr_live_"
PEPPER_VERSION = 1  # of the pepper new keys are hashed with; stored beside each hash
KEY_ID_LENGTH = 12
SECRET_LENGTH = 43  # 256 bits in base 62
CRC_LENGTH = 6  # 32 bits in base 62
KEY_LENGTH = len(PREFIX) + KEY_ID_LENGTH + 1 + SECRET_LENGTH + CRC_LENGTH

_DIGITS = string.digits + string.ascii_uppercase + string.ascii_lowercase
_DIGIT_SET = frozenset(_DIGITS)


class Scope(StrEnum):
    """What a key may do. Stored."""

    INFER_WRITE = "infer:write"  # create and cancel jobs
    JOBS_READ = "jobs:read"  # read jobs and their events
    USAGE_READ = "usage:read"  # read usage and the balance
    WEBHOOKS_WRITE = "webhooks:write"  # say where events go, and see what was delivered


# Stored beside the scopes it stands for: those of this release, and what later ones add.
ALL = "all"
ALL_SCOPES = tuple(Scope)


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key just made. `text` is shown to its owner once and stored nowhere."""

    key_id: str
    text: str

    @property
    def last4(self) -> str:
        """The last characters, by which its owner recognises it in a list."""
        return self.text[-4:]


def generate() -> NewKey:
    """A new random key."""
    key_id = "".join(secrets.choice(_DIGITS) for _ in range(KEY_ID_LENGTH))
    secret = _base62(secrets.randbits(256), SECRET_LENGTH)
    body = f"{PREFIX}{key_id}_{secret}"
    return NewKey(key_id, body + _checksum(body))


def parse_key_id(text: str) -> str | None:
    """The key id of a well-formed key with a right checksum, otherwise None."""
    if len(text) != KEY_LENGTH or not text.startswith(PREFIX):
        return None
    key_id, _, rest = text[len(PREFIX) :].partition("_")
    if len(key_id) != KEY_ID_LENGTH or not _DIGIT_SET.issuperset(key_id + rest):
        return None
    body, checksum = text[:-CRC_LENGTH], text[-CRC_LENGTH:]
    return key_id if checksum == _checksum(body) else None


def hash_key(pepper: bytes, text: str) -> bytes:
    """What the database stores. Useless to a thief of the database without the pepper."""
    return hmac.new(pepper, text.encode(), hashlib.sha256).digest()


def stored_scopes(names: Iterable[str]) -> list[str]:
    """In their order. `all` beside each that there is, as an earlier release knows those alone."""
    asked = set(names)
    known = [scope.value for scope in ALL_SCOPES]
    return [*known, ALL] if ALL in asked else [name for name in known if name in asked]


def shown_scopes(stored: Iterable[str]) -> tuple[str, ...]:
    """As an operator chooses them."""
    scopes = tuple(stored)
    return (ALL,) if ALL in scopes else scopes


def _checksum(body: str) -> str:
    return _base62(zlib.crc32(body.encode()), CRC_LENGTH)


def _base62(number: int, length: int) -> str:
    digits = []
    for _ in range(length):
        number, digit = divmod(number, 62)
        digits.append(_DIGITS[digit])
    return "".join(reversed(digits))
