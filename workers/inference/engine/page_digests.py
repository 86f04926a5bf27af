"""Names for full pages by content: a chain of digests from a root through every page before.

Equal digests mean equal tokens from the first one on under the same root. The root holds the cache
salt, so no request can find, or time, what was computed under another salt.
"""

from __future__ import annotations

from array import array
from hashlib import blake2b

from workers.inference.engine.request import Request

_DIGEST_BYTES = 16


def extend_page_digests(request: Request, page_size: int, *, is_private: bool) -> None:
    """Bring `request.page_digests` up to all full pages of its tokens; hashes each page once.

    Private digests are shared by the choices of one request and by nobody else; a request of one
    choice has nobody to share with and gets none.
    """
    digests, num_full = request.page_digests, request.num_tokens // page_size
    if len(digests) == num_full or (is_private and request.sampling.n == 1):
        return
    new_tokens = request.token_ids[len(digests) * page_size : num_full * page_size]
    data = array("q", new_tokens).tobytes()
    num_bytes = page_size * 8
    digest = digests[-1] if digests else _root(request, is_private=is_private)
    for start in range(0, len(data), num_bytes):
        digest = _digest(digest + data[start : start + num_bytes])
        digests.append(digest)


def _root(request: Request, *, is_private: bool) -> bytes:
    scope = ("request", request.request_id) if is_private else ("salt", request.cache_salt)
    return _digest(repr((request.model, *scope)).encode())  # repr: no two tuples read alike


def _digest(data: bytes) -> bytes:
    return blake2b(data, digest_size=_DIGEST_BYTES).digest()
