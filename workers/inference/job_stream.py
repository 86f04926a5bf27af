"""One running job's output: its events in order, its tokens, and how much of it is in Redis.

The publisher thread writes; the handler reads once `finished` is set; the heartbeat takes
checkpoints under the lock.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from uuid import UUID

from store.attempts import Checkpoint, Claimed, RunningCheckpoint
from tasks.events import Event, EventType, compress_event_log, make_event
from tasks.stream import Append, Code, Reply
from tasks.token_ids import pack_token_ids
from workers.inference.engine.protocol import TokenOutput

# Stands for NUL, which models can produce and Postgres can't store in text or JSON: a checkpoint
# with one would fail for all jobs of the worker.
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class JobStream:
    """The stream of one attempt, with the history it continues."""

    def __init__(
        self, claimed: Claimed, *, history: Sequence[Event], token_ids: Sequence[int], text: str
    ) -> None:
        """`history` is all events so far, beginning with number 1 or with a gap."""
        self.claimed = claimed
        self.finished = threading.Event()  # a terminal output came, or the job was taken away
        self.terminal: TokenOutput | None = None
        self.is_fenced = False
        self.first_token_at: float | None = None
        self._lock = threading.Lock()
        self._events = list(history)
        self._resumed_tokens = len(token_ids)
        self._token_ids = list(token_ids)
        self._text = [text]
        self._acked = history[-1].seq if history else 0
        self._resets_log = False
        self._has_marker = False
        self._checkpointed = claimed.checkpoint.seq

    @property
    def job_id(self) -> UUID:
        """The job's id."""
        return self.claimed.job_id

    @property
    def token_ids(self) -> list[int]:
        """All output tokens so far, those of earlier attempts included."""
        return self._token_ids

    @property
    def text(self) -> str:
        """All output text so far."""
        return "".join(self._text)

    @property
    def last_seq(self) -> int:
        """The last sequence number given."""
        return self._events[-1].seq if self._events else 0

    @property
    def attempt_tokens(self) -> int:
        """Tokens this attempt produced itself."""
        return len(self._token_ids) - self._resumed_tokens

    def must_reset_log(self) -> None:
        """The log in Redis is not whole: the next append replaces it by what is in memory."""
        self._resets_log = True
        self._acked = 0

    def add_started(self) -> None:
        """First event of the attempt."""
        self._add(EventType.STARTED, attempt=self.claimed.attempt, model=self.claimed.model)

    def add_output(self, output: TokenOutput) -> None:
        """What one engine step produced. Nothing is added after the terminal output."""
        with self._lock:
            if self.terminal is not None:
                return
            if output.token_ids or output.text:
                self._add_tokens(output)
            if output.finish_reason is not None:
                self.terminal = output

    def end(self, terminal: TokenOutput) -> None:
        """End the output without the engine. If the engine has ended it, its end stands."""
        with self._lock:
            if self.terminal is None:
                self.terminal = terminal

    def add_marker(self) -> None:
        """The final marker; call once the job's end is committed. Idempotent."""
        if not self._has_marker:
            self._has_marker = True
            self._add(EventType.DONE)

    def marker_seq(self) -> int:
        """The number the final marker has or will have."""
        return self.last_seq if self._has_marker else self.last_seq + 1

    def event_log(self) -> bytes:
        """Compressed native events, the final marker included."""
        marker = [] if self._has_marker else [make_event(self.marker_seq(), EventType.DONE)]
        return compress_event_log([*self._events, *marker])

    def pending(self) -> Append | None:
        """What Redis has not confirmed yet."""
        events = self._tail()
        if not events:
            return None
        return Append(
            self.job_id,
            self.claimed.attempt,
            events,
            is_final=events[-1].type == EventType.DONE,
            resets_log=self._resets_log,
        )

    def confirm(self, reply: Reply) -> None:
        """Note what Redis said to an append."""
        match reply.code:
            case Code.OK:
                self._acked = reply.last_seq
                self._resets_log = False
            case Code.HOLE:
                self.must_reset_log()
            case Code.FENCED | Code.FINAL:
                self.fence()

    def fence(self) -> None:
        """The job belongs to another attempt, or is over: nothing of this one counts any more."""
        self.is_fenced = True
        self.finished.set()

    def checkpoint(self) -> Checkpoint:
        """All output so far, as the next attempt will need it."""
        with self._lock:
            return self._checkpoint()

    def due_checkpoint(self) -> RunningCheckpoint | None:
        """A checkpoint if there is something new since the last one saved."""
        with self._lock:
            if self.last_seq == self._checkpointed or self.is_fenced:
                return None
            return RunningCheckpoint(
                job_id=self.job_id,
                attempt=self.claimed.attempt,
                checkpoint=self._checkpoint(),
                output_tokens=self.attempt_tokens,
            )

    def note_checkpoint(self, seq: int) -> None:
        """Postgres has everything up to this event."""
        self._checkpointed = seq

    def _checkpoint(self) -> Checkpoint:
        token_ids = pack_token_ids(self._token_ids)
        return Checkpoint(seq=self.last_seq, token_ids=token_ids, text=self.text)

    def _tail(self) -> list[Event]:
        """Events after the confirmed one; their numbers are consecutive."""
        events = self._events
        if not events:
            return []
        return events[max(0, self._acked - events[0].seq + 1) :]

    def _add_tokens(self, output: TokenOutput) -> None:
        if self.first_token_at is None:
            self.first_token_at = time.monotonic()
        text = output.text.replace("\0", REPLACEMENT)
        self._token_ids += output.token_ids
        self._text.append(text)
        self._add(EventType.TOKEN, index=output.index, text=text, token_ids=output.token_ids)

    def _add(self, type_: EventType, **fields: object) -> None:
        self._events.append(make_event(self.last_seq + 1, type_, **fields))
