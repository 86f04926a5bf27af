"""The certificates that HTTP clients of a test process trust: one instead of all of the world's.

No test speaks to the world, and each client reads them anew, which takes longer than many a test.
"""

from __future__ import annotations

import atexit
import os
import tempfile
from pathlib import Path

import certifi

_END = "-----END CERTIFICATE-----\n"


def trust_one() -> None:
    """From now on, in this process."""
    first, end, _ = Path(certifi.where()).read_text().partition(_END)
    handle, name = tempfile.mkstemp(prefix="millrace-certificate-", suffix=".pem")
    with os.fdopen(handle, "w") as file:
        file.write(first + end)
    atexit.register(Path(name).unlink, missing_ok=True)
    certifi.where = lambda: name
