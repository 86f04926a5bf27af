"""What a dialect's stream is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol
from uuid import UUID

from api.json_pieces import Piece
from api.prompts.vocabulary import Vocabulary
from store.jobs import JobRow
from tasks.errors import ServiceError, StreamExpired
from tasks.events import Event


@dataclass(frozen=True, slots=True)
class ShownJob:
    """A job with all that a dialect needs to show it."""

    row: JobRow
    request: Mapping[str, Any]  # the known fields of the body, as the client sent them
    vocabulary: Vocabulary | None = None  # of its model, while the catalog has it

    @property
    def id(self) -> UUID:
        """The job's id."""
        job_id: UUID = self.row["id"]
        return job_id

    @property
    def is_stored(self) -> bool:
        """Whether it can be looked at after the client has had it."""
        return self.row["is_stored"] and self.request.get("store") is not False

    def with_row(self, row: JobRow) -> ShownJob:
        """The same job at another time."""
        return ShownJob(row, self.request, self.vocabulary)


class Frame(NamedTuple):
    """One server-sent event of a dialect.

    `seq` is where it stands in the dialect's own numbering; frames up to a client's cursor are not
    sent again. `has_id` says whether a client may take the number as its cursor: it is False for a
    frame that belongs together with the one behind it.
    """

    seq: int
    data: bytes | Sequence[Piece]  # JSON
    event: str | None = None
    has_id: bool = True


class Fold(Protocol):
    """The stream of one job in one dialect. Deterministic: no clock, no randomness, no I/O."""

    # Whether frames are numbered like the native events they come from.
    has_native_numbers: bool
    # What follows the last frame, as it is.
    trailer: bytes

    def begin(self) -> list[Frame]:
        """Frames before any event."""
        ...

    def feed(self, event: Event) -> list[Frame]:
        """Frames of one native event but `done`.

        Raises StreamExpired when a gap restates another text than was sent.
        """
        ...

    def finish(self, seq: int, row: JobRow) -> list[Frame]:
        """Frames of `done`, the native event `seq`, from the row of the job that is over."""
        ...

    def failure(self, seq: int, error: ServiceError) -> list[Frame]:
        """Frames that end the stream with an error, in the place of event `seq`."""
        ...


class Texts:
    """The text of each choice so far, and what a gap adds to it."""

    def __init__(self, num_choices: int) -> None:
        # In UTF-8, which grows in place: a text may have as many pieces as an answer has tokens.
        self._texts = [bytearray() for _ in range(num_choices)]
        self._num_chars = [0] * num_choices

    def num_chars(self, index: int) -> int:
        """The length of a choice's text."""
        return self._num_chars[index]

    def add(self, index: int, text: str) -> None:
        """More text of a choice."""
        self._texts[index] += text.encode()
        self._num_chars[index] += len(text)

    def after_gap(self, fields: Mapping[str, Any]) -> list[tuple[int, str]]:
        """What to send for a gap: (choice, text). Raises StreamExpired if what was sent is not the
        beginning of what the gap says: no client of this dialect can take text back.
        """
        whole: Sequence[str] = fields.get("texts") or [fields["text"]]
        news = []
        for index, text in enumerate(whole):
            if not text.encode().startswith(self._texts[index]):
                raise StreamExpired("The events that this stream continues are lost.")
            if new := text[self._num_chars[index] :]:
                news.append((index, new))
                self.add(index, new)
        return news
