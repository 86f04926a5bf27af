"""The fields beside an uploaded file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from store.files import BATCH_TTL_S, Purpose
from tasks.errors import InvalidRequest

UPLOAD_PURPOSES = (Purpose.BATCH, Purpose.USER_DATA)
MIN_TTL_S, MAX_TTL_S = 3_600, 2_592_000
MAX_FILENAME = 255

_ANCHOR, _SECONDS = "expires_after[anchor]", "expires_after[seconds]"
_DIGITS = re.compile("[0-9]{1,9}")


@dataclass(frozen=True, slots=True)
class UploadForm:
    """What a client says of its file."""

    purpose: Purpose
    ttl_s: int | None


def parse_form(fields: Mapping[str, str]) -> UploadForm:
    """Raises InvalidRequest. Fields we don't know are ignored."""
    if "purpose" not in fields:
        raise InvalidRequest("Missing required parameter: 'purpose'.", param="purpose")
    purpose = parse_purpose(fields["purpose"])
    ttl_s = _ttl_s(fields)
    if ttl_s is None and purpose == Purpose.BATCH:
        ttl_s = BATCH_TTL_S
    return UploadForm(purpose, ttl_s)


def parse_purpose(text: str) -> Purpose:
    """A purpose that a client may upload for. Raises InvalidRequest."""
    if text not in UPLOAD_PURPOSES:
        names = " or ".join(f"'{purpose}'" for purpose in UPLOAD_PURPOSES)
        raise InvalidRequest(f"'purpose' must be {names}.", param="purpose")
    return Purpose(text)


def clean_filename(text: str) -> str:
    """The last part of a path, without control characters. Shown to its owner, used for nothing."""
    name = re.split(r"[/\\]", text)[-1]
    name = "".join(char for char in name if char.isprintable()).strip()[:MAX_FILENAME]
    if not name:
        raise InvalidRequest("'file' must have a name.", param="file")
    return name


def _ttl_s(fields: Mapping[str, str]) -> int | None:
    if _ANCHOR not in fields and _SECONDS not in fields:
        return None
    if fields.get(_ANCHOR) != "created_at":
        raise InvalidRequest("'expires_after[anchor]' must be 'created_at'.", param=_ANCHOR)
    text = fields.get(_SECONDS, "")
    if not _DIGITS.fullmatch(text) or not MIN_TTL_S <= int(text) <= MAX_TTL_S:
        message = f"'expires_after[seconds]' must be from {MIN_TTL_S} to {MAX_TTL_S}."
        raise InvalidRequest(message, param=_SECONDS)
    return int(text)
