"""Whatever befalls producers and Redis, a reader's texts are the stored ones, one for each choice,
and no sequence number is seen with two different events.

A stale attempt goes on even after Redis, which fences it, forgot who owns the stream; but it begins
no log: the publisher holds such appends back once the worker's lease is over.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from uuid import UUID

import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from store.attempts import Checkpoint, Claimed
from tasks import keys
from tasks.events import Event, EventType, decompress_event_log, parse_message, texts_of
from tasks.ids import uuid7
from tasks.stream import Append, Code, StreamWriter
from tests.integration.tasks.conftest import RedisServer
from tests.support.jobs import PRICES
from workers.inference.engine.protocol import TokenOutput
from workers.inference.job_stream import JobStream
from workers.inference.resume import open_stream


class Reader:
    """Follows one job by the reading rules: subscribe, replay, follow, drop what it had."""

    def __init__(self, client: redis.Redis, job_id: UUID, num_choices: int) -> None:
        self._client = client
        self._job_id = job_id
        self.last = 0
        self.texts = [""] * num_choices
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
            self.texts = texts_of([event], len(self.texts))
        elif event.type == EventType.TOKEN:
            fields = event.fields()
            self.texts[fields["index"]] += fields["text"]

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


class Life:
    """One job: an attempt that owns it, stale ones, checkpoints in Postgres, and two readers.

    Each action takes a number from 0 to 5, to be read as it likes.
    """

    def __init__(self, server: RedisServer, num_choices: int) -> None:
        self.client = server.client()
        self.num_choices = num_choices
        self.writer = StreamWriter(self.client)
        self.nowhere = StreamWriter(redis.Redis.from_url("redis://127.0.0.1:1/0"))
        self.job_id = uuid7()
        self.tokens = itertools.count(1)
        self.checkpoint = Checkpoint()
        self.stale: list[JobStream] = []
        self.sent: list[Append] = []
        self.by_seq: dict[int, bytes] = {}
        self.follower, self.witness = (self._reader() for _ in range(2))
        self._claim(1, self.writer)

    # What goes well --------------------------------------------------------------------------

    def produce(self, n: int) -> None:
        self._step(self.owner, 1 + n % 3)

    def publish(self, _: int) -> None:
        self._send(self.owner)

    def save_checkpoint(self, _: int) -> None:
        self.checkpoint = self.owner.checkpoint()

    def follow(self, _: int) -> None:
        self.follower.follow()

    def replay(self, _: int) -> None:
        self.follower.replay()

    # What goes wrong -------------------------------------------------------------------------

    def lose_the_answer(self, _: int) -> None:
        self._send(self.owner, is_heard=False)

    def repeat_an_append(self, n: int) -> None:
        if self.sent:
            self.writer.append([self.sent[-1 - n % len(self.sent)]])

    def miss_messages(self, _: int) -> None:
        self.follower.miss()

    def take_over(self, _: int) -> None:
        self._take_over(self.writer)

    def take_over_without_redis(self, _: int) -> None:
        self._take_over(self.nowhere)

    def let_a_stale_attempt_go_on(self, n: int) -> None:
        if self.stale:
            stale = self.stale[-1 - n % 2 % len(self.stale)]
            self._step(stale, n)
            if (append := stale.pending()) is not None and not append.begins_log:
                self._send(stale)

    def lose_everything(self, _: int) -> None:
        self.client.flushall()
        self._forget_what_is_under_way()

    def restart_redis_without_the_last_events(self, n: int) -> None:
        """As after `kill -9` with an append-only file that is synced once a second."""
        meta, log = keys.stream_meta(self.job_id), keys.stream_log(self.job_id)
        kept = self.writer.read_log(self.job_id)[: -1 - n]
        self.client.delete(log)
        if kept:
            for event in kept:
                self.client.xadd(log, {"e": event.payload}, id=f"{event.seq}-0")
            self.client.hset(meta, mapping={"s": kept[-1].seq, "r": "0123"})
        else:
            self.client.delete(meta)
        self._forget_what_is_under_way()

    def delete_the_log(self, _: int) -> None:
        self.client.delete(keys.stream_log(self.job_id))

    # What must hold --------------------------------------------------------------------------

    def check(self) -> None:
        """No number is given to two events."""
        self.witness.follow()
        for event in (*self.witness.seen, *self.writer.read_log(self.job_id)):
            assert self.by_seq.setdefault(event.seq, event.payload) == event.payload
        self.witness.seen.clear()

    def end(self) -> None:
        """The job ends. Every reader has the texts that are stored."""
        owner = self.owner
        stored = decompress_event_log(owner.event_log())
        owner.add_marker()
        for _ in range(3):
            self._send(owner)
        self.check()
        late_reader = self._reader()
        for reader in (self.follower, self.witness, late_reader):
            reader.replay()

        assert self.writer.read_log(self.job_id) == stored
        assert stored[-1].type == EventType.DONE
        texts = [choice.text for choice in owner.choices]
        assert texts_of(stored, self.num_choices) == texts
        for reader in (self.follower, self.witness, late_reader):
            assert (reader.texts, reader.last) == (texts, stored[-1].seq)
            reader.close()
        self.client.close()

    # -----------------------------------------------------------------------------------------

    def _reader(self) -> Reader:
        return Reader(self.client, self.job_id, self.num_choices)

    def _claim(self, attempt: int, writer: StreamWriter) -> None:
        job = claimed(self.job_id, attempt, self.checkpoint, self.num_choices)
        self.owner = open_stream(writer, job)
        self.owner.add_started()

    def _take_over(self, writer: StreamWriter) -> None:
        self.stale.append(self.owner)
        self._claim(self.owner.claimed.attempt + 1, writer)

    def _step(self, job: JobStream, num: int) -> None:
        """Every token is another one: attempts don't produce equal text."""
        ids = tuple(itertools.islice(self.tokens, num))
        text = "".join(f" {token_id}" for token_id in ids)
        index = sum(ids) % self.num_choices
        job.add_output(TokenOutput(request_id="r", token_ids=ids, text=text, index=index))

    def _send(self, job: JobStream, *, is_heard: bool = True) -> None:
        append = job.pending()
        if append is None or job.is_fenced:
            return
        self.sent.append(append)
        (reply,) = self.writer.append([append])
        assert job is not self.owner or reply.code in (Code.OK, Code.HOLE)
        if is_heard:
            job.confirm(reply)

    def _forget_what_is_under_way(self) -> None:
        """Connections break with Redis, and with them the requests of attempts that are over."""
        self.sent = [a for a in self.sent if a.attempt == self.owner.claimed.attempt]


# With weights: a life is mostly quiet, so that something is there to be lost.
Action = Callable[[Life, int], None]
ACTIONS: tuple[Action, ...] = (
    *[Life.produce, Life.publish] * 6,
    *[Life.follow, Life.save_checkpoint, Life.let_a_stale_attempt_go_on] * 3,
    *[Life.take_over, Life.lose_the_answer, Life.repeat_an_append, Life.miss_messages] * 2,
    Life.take_over_without_redis,
    Life.replay,
    Life.lose_everything,
    Life.restart_redis_without_the_last_events,
    Life.delete_the_log,
)


def claimed(job_id: UUID, attempt: int, checkpoint: Checkpoint, num_choices: int) -> Claimed:
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
        num_choices=num_choices,
    )


@settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=60,
    suppress_health_check=list(HealthCheck),
)
@given(
    actions=st.lists(
        st.tuples(st.sampled_from(ACTIONS), st.integers(0, 5)), min_size=30, max_size=60
    ),
    num_choices=st.integers(1, 3),
)
def test_readers_text_is_the_stored_text_whatever_is_tried(
    redis_server: RedisServer, actions: list[tuple[Action, int]], num_choices: int
) -> None:
    live(Life(redis_server, num_choices), actions)


def test_readers_text_is_the_stored_text_whatever_the_dice_say(redis_server: RedisServer) -> None:
    """Even dice meet rare orders of events that hypothesis, which likes repetition, doesn't try."""
    for seed in range(300):
        dice = random.Random(seed)
        actions = [(dice.choice(ACTIONS), dice.randrange(6)) for _ in range(50)]
        try:
            live(Life(redis_server, 1 + seed % 3), actions)
        except AssertionError as error:
            error.add_note(f"seed {seed}: {[act.__name__ for act, _ in actions]}")
            raise


def live(life: Life, actions: Sequence[tuple[Action, int]]) -> None:
    for act, n in actions:
        act(life, n)
        life.check()
    life.end()
