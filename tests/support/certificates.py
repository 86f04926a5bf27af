"""The certificates that HTTP clients of a test process trust: one instead of all of the world's.

No test speaks to the world, and each client reads them anew, which takes longer than many a test.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import certifi

_END = "-----END CERTIFICATE-----\n"


@contextmanager
def one_certificate() -> Iterator[None]:
    """In this process, inside the block."""
    first, end, _ = Path(certifi.where()).read_text().partition(_END)
    with tempfile.NamedTemporaryFile("w", prefix="millrace-certificate-", suffix=".pem") as file:
        file.write(first + end)
        file.flush()
        before, certifi.where = certifi.where, lambda: file.name
        yield
        certifi.where = before
