"""Whatever befalls producers and Redis, a reader's text is the stored text, and no sequence number
is seen with two different events.

What is not among the misfortunes: a stale attempt that goes on publishing after Redis, which fences
it, forgot who owns the stream. Its worker has fenced itself by then: its lease is over.
"""

from __future__ import annotations

import itertools
from uuid import UUID

import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from store.attempts import Checkpoint, Claimed
from tasks import keys
from tasks.events import Event, EventType, decompress_event_log, parse_message, text_of
from tasks.ids import uuid7
from tasks.stream import Append, Code, StreamWriter
from tests.integration.tasks.conftest import RedisServer
from tests.support.jobs import PRICES
from workers.inference.engine.protocol import TokenOutput
from workers.inference.job_stream import JobStream
from workers.inference.resume import open_stream

SETTINGS = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=120,
    stateful_step_count=40,
    suppress_health_check=list(HealthCheck),
)


class Reader:
    """Follows one job by the reading rules: subscribe, replay, follow, drop what it had."""

    def __init__(self, client: redis.Redis, job_id: UUID) -> None:
        self._client = client
        self._job_id = job_id
        self.last = 0
        self.text = ""
        self.seen: list[Event] = []
        self._subscription = client.pubsub()  # type: ignore[no-untyped-call]  # redis-py's gap
        self._subscription.subscribe(keys.stream_channel(job_id))

    def follow(self) -> None:
        """Take what was published; a number that is missing makes it look into the log."""
        for event in self._published():
            if event.seq > self.last + 1 and event.type != EventType.GAP:
                self.replay()
            self._take(event)

    def miss(self) -> None:
        """The connection broke: what was published meanwhile never comes."""
        self._published()

    def replay(self) -> None:
        for event in StreamWriter(self._client).read_log(self._job_id):
            self._take(event)

    def close(self) -> None:
        self._subscription.close()

    def _take(self, event: Event) -> None:
        self.seen.append(event)
        is_next = event.seq == self.last + 1 or event.type == EventType.GAP
        if event.seq <= self.last or not is_next:
            return
        self.last = event.seq
        if event.type == EventType.GAP:
            self.text = event.fields()["text"]
        elif event.type == EventType.TOKEN:
            self.text += event.fields()["text"]

    def _published(self) -> list[Event]:
        """All so far: Redis answers the ping after what it sent before."""
        self._subscription.ping()
        events: list[Event] = []
        while (message := self._subscription.get_message(timeout=5)) is not None:
            if message["type"] == "pong":
                return events
            if message["type"] == "message":
                events.append(parse_message(message["data"]))
        raise AssertionError("Redis doesn't answer")


class StreamMachine(RuleBasedStateMachine):
    """One job: an attempt that owns it, stale ones, checkpoints in Postgres, and two readers."""

    def __init__(self, server: RedisServer) -> None:
        super().__init__()
        self.client = server.client()
        self.writer = StreamWriter(self.client)
        self.nowhere = StreamWriter(redis.Redis.from_url("redis://127.0.0.1:1/0"))
        self.job_id = uuid7()
        self.tokens = itertools.count(1)
        self.checkpoint = Checkpoint()
        self.stale: list[JobStream] = []
        self.sent: list[Append] = []
        self.by_seq: dict[int, bytes] = {}

    @initialize()
    def begin(self) -> None:
        self.follower, self.witness = (Reader(self.client, self.job_id) for _ in range(2))
        self.claim(1, self.writer)

    # What goes well --------------------------------------------------------------------------

    @rule(num=st.integers(1, 3))
    def produce(self, num: int) -> None:
        self.step(self.owner, num)

    @rule()
    def publish(self) -> None:
        self.send(self.owner)

    @rule()
    def save_checkpoint(self) -> None:
        self.checkpoint = self.owner.checkpoint()

    @rule()
    def follow(self) -> None:
        self.follower.follow()

    @rule()
    def replay(self) -> None:
        self.follower.replay()

    # What goes wrong -------------------------------------------------------------------------

    @rule()
    def answer_of_an_append_is_lost(self) -> None:
        self.send(self.owner, is_heard=False)

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def append_arrives_again(self, data: st.DataObject) -> None:
        self.writer.append([data.draw(st.sampled_from(self.sent))])

    @rule()
    def reader_misses_messages(self) -> None:
        self.follower.miss()

    @rule()
    def attempt_is_taken_over(self) -> None:
        self.take_over(self.writer)

    @rule()
    def attempt_is_taken_over_while_redis_is_away(self) -> None:
        self.take_over(self.nowhere)

    @precondition(lambda self: self.stale)
    @rule(data=st.data(), num=st.integers(0, 3))
    def stale_attempt_goes_on(self, data: st.DataObject, num: int) -> None:
        stale = data.draw(st.sampled_from(self.stale))
        self.step(stale, num)
        self.send(stale)

    @rule()
    def redis_loses_everything(self) -> None:
        self.client.flushall()
        self.forget_stale()

    @rule(num=st.integers(1, 6))
    def redis_restarts_without_the_last_events(self, num: int) -> None:
        """As after `kill -9` with an append-only file that is synced once a second."""
        meta, log = keys.stream_meta(self.job_id), keys.stream_log(self.job_id)
        kept = self.writer.read_log(self.job_id)[:-num]
        self.client.delete(log)
        if kept:
            for event in kept:
                self.client.xadd(log, {"e": event.payload}, id=f"{event.seq}-0")
            self.client.hset(meta, mapping={"s": kept[-1].seq, "r": "0123"})
        else:
            self.client.delete(meta)
        self.forget_stale()

    @precondition(lambda self: self.writer.read_log(self.job_id))
    @rule()
    def log_expires(self) -> None:
        self.client.delete(keys.stream_log(self.job_id))
        self.client.delete(keys.stream_meta(self.job_id))
        self.forget_stale()

    # What must hold --------------------------------------------------------------------------

    @invariant()
    def no_number_is_given_to_two_events(self) -> None:
        self.witness.follow()
        for event in (*self.witness.seen, *self.writer.read_log(self.job_id)):
            assert self.by_seq.setdefault(event.seq, event.payload) == event.payload
        self.witness.seen.clear()

    def teardown(self) -> None:
        """The job ends. Every reader has the text that is stored."""
        owner = self.owner
        stored = decompress_event_log(owner.event_log())
        owner.add_marker()
        for _ in range(3):
            self.send(owner)
        self.no_number_is_given_to_two_events()
        self.follower.replay()
        late_reader = Reader(self.client, self.job_id)
        late_reader.replay()

        assert self.writer.read_log(self.job_id) == stored
        assert text_of(stored) == owner.text
        assert stored[-1].type == EventType.DONE
        assert (self.follower.text, self.follower.last) == (owner.text, stored[-1].seq)
        assert (self.witness.text, self.witness.last) == (owner.text, stored[-1].seq)
        assert (late_reader.text, late_reader.last) == (owner.text, stored[-1].seq)

        for reader in (self.follower, self.witness, late_reader):
            reader.close()
        self.client.close()

    # -----------------------------------------------------------------------------------------

    def claim(self, attempt: int, writer: StreamWriter) -> None:
        self.owner = open_stream(writer, claimed(self.job_id, attempt, self.checkpoint))
        self.owner.add_started()

    def take_over(self, writer: StreamWriter) -> None:
        self.stale.append(self.owner)
        self.claim(self.owner.claimed.attempt + 1, writer)

    def step(self, job: JobStream, num: int) -> None:
        """Every token is another one: attempts don't produce equal text."""
        ids = tuple(itertools.islice(self.tokens, num))
        text = "".join(f" {token_id}" for token_id in ids)
        job.add_output(TokenOutput(request_id="r", token_ids=ids, text=text))

    def send(self, job: JobStream, *, is_heard: bool = True) -> None:
        append = job.pending()
        if append is None or job.is_fenced:
            return
        self.sent.append(append)
        (reply,) = self.writer.append([append])
        assert job is not self.owner or reply.code in (Code.OK, Code.HOLE)
        if is_heard:
            job.confirm(reply)

    def forget_stale(self) -> None:
        self.stale.clear()
        self.sent = [a for a in self.sent if a.attempt == self.owner.claimed.attempt]


def claimed(job_id: UUID, attempt: int, checkpoint: Checkpoint) -> Claimed:
    return Claimed(
        job_id=job_id,
        tenant_id=uuid7(),
        attempt=attempt,
        fail_count=0,
        max_fails=3,
        model="stub",
        service_tier="default",
        input_tokens=1,
        max_output_tokens=100,
        prices=PRICES,
        remaining_s=60.0,
        prompt_token_ids=b"\x01\x00\x00\x00",
        sampling={},
        checkpoint=checkpoint,
    )


@pytest.mark.timeout(60)
def test_readers_text_is_the_stored_text_whatever_happens(redis_server: RedisServer) -> None:
    class Machine(StreamMachine):
        def __init__(self) -> None:
            super().__init__(redis_server)

    run_state_machine_as_test(Machine, settings=SETTINGS)
