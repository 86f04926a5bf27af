"""One running job's output: its events in order, its choices, and how much of it is in Redis.

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
from workers.inference.choices import Choice, to_checkpoint, wire_logprobs
from workers.inference.engine.protocol import FinishReason, TokenOutput
from workers.inference.prompts import JobPrompt, prompts_of

# Stands for NUL, which models can produce and Postgres can't store in text or JSON: a checkpoint
# with one would fail for all jobs of the worker.
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

# How choices end, the gravest first: it is how their job ends. The first two end all choices.
_GRAVITY = (
    FinishReason.ERROR,
    FinishReason.ABORT,
    FinishReason.DEADLINE,
    FinishReason.LENGTH,
    FinishReason.STOP,
)
_END_ALL = _GRAVITY[:2]

# How long Redis keeps a running stream is said anew so often: each time costs as much as an event.
RENEW_S = 300.0
# Generations of a job that are in the engine at a time: its other prompts wait here, so that many
# prompts hold up others' requests no more than many choices do.
MAX_AT_ONCE = 8
# Log-probabilities in one event: a reader takes many events at once.
_LOGPROBS_AN_EVENT = 64


class JobStream:
    """The stream of one attempt, with the history it continues."""

    def __init__(
        self,
        claimed: Claimed,
        *,
        history: Sequence[Event],
        choices: Sequence[Choice],
        prompts: Sequence[JobPrompt] | None = None,
    ) -> None:
        """`history` is all events so far, beginning with number 1 or with a gap; `prompts` are the
        job's, with what is known of them.
        """
        self.claimed = claimed
        self.choices = choices
        self.prompts = prompts_of(claimed) if prompts is None else prompts
        # For the generations of so many prompts at a time the engine has room; see run_job.
        self.room = threading.Semaphore(max(1, MAX_AT_ONCE // self.prompts[0].num_choices))
        self.finished = threading.Event()  # the output is over, or the job was taken away
        self.is_fenced = False
        self.first_token_at: float | None = None
        self._lock = threading.Lock()
        self._events = list(history)
        self._resumed_tokens = self.num_tokens
        self._end: TokenOutput | None = None  # not the engine's
        self._is_closed = False
        self._acked = history[-1].seq if history else 0
        self._resets_log = False
        self._renewed_at = time.monotonic()  # by opening it
        self._has_marker = False
        self._checkpointed = claimed.checkpoint.seq

    @property
    def job_id(self) -> UUID:
        """The job's id."""
        return self.claimed.job_id

    @property
    def num_tokens(self) -> int:
        """All output tokens so far, of all choices, those of earlier attempts included."""
        return sum(len(choice.token_ids) for choice in self.choices)

    @property
    def has_produced(self) -> bool:
        """Whether there is anything to show, and to pay for."""
        return bool(self.num_tokens) or any(prompt.logprobs for prompt in self.prompts)

    @property
    def asks_logprobs(self) -> bool:
        """Whether events and result hold log-probabilities."""
        return self.claimed.sampling.get("logprobs") is not None

    @property
    def last_seq(self) -> int:
        """The last sequence number given."""
        return self._events[-1].seq if self._events else 0

    @property
    def attempt_tokens(self) -> int:
        """Tokens this attempt produced itself."""
        return self.num_tokens - self._resumed_tokens

    @property
    def terminal(self) -> TokenOutput | None:
        """The output that tells how the job ends: of its choices' last ones the gravest."""
        if self._end is not None or not self.is_over:
            return self._end
        return min(self._terminals(), key=_gravity)

    @property
    def is_over(self) -> bool:
        """Whether all choices have ended, or one so that it ends the rest."""
        terminals = self._terminals()
        ends_all = any(output.finish_reason in _END_ALL for output in terminals)
        return self._end is not None or ends_all or len(terminals) == len(self.choices)

    @property
    def is_generating(self) -> bool:
        """Whether the engine may still be at work for a choice."""
        return len(self._terminals()) < len(self.choices)

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that a cache served.

        A prompt is counted once, as input is billed, and its first choice is the one that computes
        it: the others find in the cache what it has just put there.
        """
        firsts = [self.choices[prompt.first_choice].terminal for prompt in self.prompts]
        return sum(first.cached_tokens for first in firsts if first)

    def must_reset_log(self) -> None:
        """The log in Redis is not whole: the next append replaces it by what is in memory."""
        self._resets_log = True
        self._acked = 0

    def add_started(self) -> None:
        """First event of the attempt."""
        self._add(EventType.STARTED, attempt=self.claimed.attempt, model=self.claimed.model)

    def add_output(self, output: TokenOutput, prompt: int = 0) -> None:
        """What one engine step produced of one choice of a prompt. Nothing is added once that has
        ended.
        """
        with self._lock:
            asked = self.prompts[prompt]
            choice = self.choices[asked.first_choice + output.index]
            if self._is_closed or choice.terminal is not None:
                return
            self._add_prompt(asked, output)
            # An aborted choice's last output is text that was held back: see add_held_back.
            if output.finish_reason is not FinishReason.ABORT:
                self._add_tokens(choice, output)
            if output.finish_reason is not None:
                choice.terminal = output
                if self._is_through(asked):
                    self.room.release()

    def add_held_back(self) -> None:
        """The job ends with its abort: text that waited for further tokens comes out.

        Where the job goes on in another attempt, that one produces it.
        """
        with self._lock:
            for choice in self.choices:
                output = choice.terminal
                if output is not None and output.finish_reason is FinishReason.ABORT:
                    self._add_tokens(choice, output)

    def close(self) -> None:
        """The output is over: its handler goes on, and nothing is added any more."""
        with self._lock:
            self._is_closed = True
        self._finish()

    def end(self, terminal: TokenOutput) -> None:
        """End the output without the engine. If the engine has ended it, its end stands."""
        with self._lock:
            if not self.is_over:
                self._end = terminal
            self._is_closed = True

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

    @property
    def has_pending(self) -> bool:
        """Whether there is something that Redis has not confirmed."""
        return self.last_seq > self._acked

    def pending(self) -> Append | None:
        """What Redis has not confirmed yet."""
        if not self.has_pending:
            return None
        # Their numbers are consecutive.
        events = self._events[max(0, self._acked - self._events[0].seq + 1) :]
        return Append(
            self.job_id,
            self.claimed.attempt,
            events,
            is_final=events[-1].type == EventType.DONE,
            resets_log=self._resets_log,
            renews=time.monotonic() - self._renewed_at >= RENEW_S,
        )

    def confirm(self, reply: Reply, *, renewed: bool = False) -> None:
        """Note what Redis said to an append, and whether that renewed how long the stream is kept.
        One that was refused is pending still.
        """
        match reply.code:
            case Code.OK:
                self._acked = reply.last_seq
                self._resets_log = False
                if renewed:
                    self._renewed_at = time.monotonic()
            case Code.HOLE:
                self.must_reset_log()
            case Code.FENCED | Code.FINAL:
                self.fence()

    def fence(self) -> None:
        """The job belongs to another attempt, or is over: nothing of this one counts any more."""
        self.is_fenced = True
        self._finish()

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

    def _finish(self) -> None:
        self.finished.set()
        self.room.release()  # whoever waits for it sees that it is over

    def _is_through(self, prompt: JobPrompt) -> bool:
        own = self.choices[prompt.first_choice : prompt.first_choice + prompt.num_choices]
        return all(choice.terminal is not None for choice in own)

    def _add_prompt(self, prompt: JobPrompt, output: TokenOutput) -> None:
        """How likely the next tokens of a prompt were, a few an event."""
        num_top = self.claimed.sampling.get("prompt_logprobs") or 0
        size = max(1, _LOGPROBS_AN_EVENT // (1 + num_top))
        for begin in range(0, len(output.prompt_logprobs), size):
            part = output.prompt_logprobs[begin : begin + size]
            logprobs = wire_logprobs(part)
            self._add(
                EventType.PROMPT,
                index=prompt.first_choice,
                start=len(prompt.logprobs),
                total=prompt.num_tokens,
                token_ids=[of_token.token_id for of_token in part],
                logprobs=logprobs,
            )
            prompt.logprobs += logprobs

    def _checkpoint(self) -> Checkpoint:
        return to_checkpoint(self.last_seq, self.choices)

    def _terminals(self) -> list[TokenOutput]:
        return [choice.terminal for choice in self.choices if choice.terminal is not None]

    def _add_tokens(self, choice: Choice, output: TokenOutput) -> None:
        if not output.token_ids and not output.text:
            return
        if self.first_token_at is None:
            self.first_token_at = time.monotonic()
        text = output.text.replace("\0", REPLACEMENT)
        fields: dict[str, object] = {
            "index": choice.index,
            "text": text,
            "token_ids": output.token_ids,
        }
        logprobs = wire_logprobs(output.logprobs)
        if self.asks_logprobs:
            fields["logprobs"] = logprobs
        # What no event can say, no checkpoint holds either.
        self._add(EventType.TOKEN, **fields)
        choice.add(output.token_ids, text, logprobs)

    def _add(self, type_: EventType, **fields: object) -> None:
        self._events.append(make_event(self.last_seq + 1, type_, **fields))


def _gravity(output: TokenOutput) -> int:
    assert output.finish_reason is not None
    return _GRAVITY.index(output.finish_reason)
