"""How long a peer may take over what, and how much it may send beside a body."""

from __future__ import annotations

from dataclasses import dataclass

from api.settings import SEND_TIMEOUT_S

MAX_HEAD_BYTES = 64 << 10  # request line and headers; trailers and the frames of chunks alike
MAX_HEADERS = 128
MAX_PIPELINED = 16  # requests sent before the answer to the one before them
MIN_BODY_BYTES_PER_S = 4_096

# Thousands may be late, or refused, in the same moment, since one peer opened them in the same
# moment; to end one takes some 50 us. After AT_ONCE_S the loop turns to others, and after PAUSE_S
# to the rest.
AT_ONCE_S = 0.002
PAUSE_S = 0.004


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """In seconds. Each is noticed up to `tick_s` late."""

    head_s: float = 10.0  # request line and headers, from their first byte
    idle_s: float = 75.0  # before and between requests; above that of common balancers, 60 s
    body_s: float = 60.0  # a pause in a body; less for one that was slow before
    stall_s: float = SEND_TIMEOUT_S  # until some of what is buffered for the peer (64 KiB) is read
    linger_s: float = 5.0  # a close, until the peer has read what comes before it
    quiet_s: float = 1.0  # a pause in what is still sent to a connection that is being closed
    tick_s: float = 0.5
