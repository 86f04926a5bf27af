"""Names of keys and channels are wire format: renaming one takes two releases."""

from __future__ import annotations

from uuid import UUID

from tasks import keys

ID = UUID("01a207be-be81-7000-98ee-a49960888d98")
DIGITS = "01a207bebe81700098eea49960888d98"


def test_names_are_those_of_the_release_before() -> None:
    assert keys.stream_meta(ID) == f"stream:{{{DIGITS}}}:meta"
    assert keys.stream_log(ID) == f"stream:{{{DIGITS}}}:log"
    assert keys.stream_channel(ID) == f"stream:{{{DIGITS}}}"
    assert keys.cancel_channel(ID) == f"cancel:{DIGITS}"
    assert keys.rate_limits(ID) == f"limits:{DIGITS}"
    assert keys.refused_request(b"\x01\xff") == "refused:01ff"


def test_a_channel_names_its_job() -> None:
    assert keys.job_of_channel(keys.stream_channel(ID)) == ID
