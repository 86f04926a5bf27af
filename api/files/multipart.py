"""Takes a multipart/form-data body apart as it arrives: short fields, and one file.

What is kept between two chunks is bounded, whatever the client sends.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from tasks.errors import InvalidRequest

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

FILE = "file"  # the part that is the file
MAX_PARTS = 16
MAX_FIELD_BYTES = 1_024


@dataclass(frozen=True, slots=True)
class Field:
    """A whole field."""

    name: str
    value: str


@dataclass(frozen=True, slots=True)
class FileBegin:
    """The file begins; its bytes follow."""

    filename: str


# bytes: the file's next ones
Piece = Field | FileBegin | bytes


class FormParser:
    """One body. Raises InvalidRequest for what isn't a form of ours."""

    def __init__(self, content_type: str) -> None:
        self._pieces: list[Piece] = []
        self._num_parts = 0
        self._has_file = False
        self._is_over = False
        self._begin_part()
        try:
            self._parser = MultipartParser(_boundary(content_type), self._callbacks())
        except FormParserError:
            raise _malformed() from None

    def feed(self, chunk: bytes) -> list[Piece]:
        """What this chunk completes."""
        self._pieces = []
        try:
            self._parser.write(chunk)
        except FormParserError:
            raise _malformed() from None
        return self._pieces

    def finish(self) -> None:
        """Raises InvalidRequest if the body broke off."""
        if not self._is_over:
            raise _malformed()

    def _callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self._begin_part,
            "on_header_field": self._on_header_field,
            "on_header_value": self._on_header_value,
            "on_header_end": self._on_header_end,
            "on_headers_finished": self._on_headers_finished,
            "on_part_data": self._on_data,
            "on_part_end": self._on_part_end,
            "on_end": self._on_end,
        }

    def _begin_part(self) -> None:
        self._header_name = b""
        self._header_value = b""
        self._disposition = b""
        self._name: str | None = None  # of a field; None while the part isn't one
        self._value = b""
        self._is_file = False

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _on_header_end(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = self._header_value
        self._header_name = self._header_value = b""

    def _on_headers_finished(self) -> None:
        self._num_parts += 1
        if self._num_parts > MAX_PARTS:
            raise InvalidRequest(f"The form has more than {MAX_PARTS} parts.")
        _, options = parse_options_header(self._disposition)
        if b"name" not in options:
            raise _malformed()
        name, filename = _text(options[b"name"]), options.get(b"filename")
        if name == FILE:
            self._begin_file(filename)
        elif filename is None:
            self._name = name

    def _begin_file(self, filename: bytes | None) -> None:
        if filename is None:
            raise InvalidRequest("'file' must be a file with a name.", param=FILE)
        if self._has_file:
            raise InvalidRequest("Send one file at a time.", param=FILE)
        self._has_file = self._is_file = True
        self._pieces.append(FileBegin(_text(filename)))

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        if self._is_file:
            self._pieces.append(data[start:end])
        elif self._name is not None:
            self._value += data[start:end]
            if len(self._value) > MAX_FIELD_BYTES:
                raise InvalidRequest(f"A form field has more than {MAX_FIELD_BYTES} bytes.")

    def _on_part_end(self) -> None:
        if self._name is not None:
            self._pieces.append(Field(self._name, _text(self._value)))
        self._begin_part()

    def _on_end(self) -> None:
        self._is_over = True


def _boundary(content_type: str) -> bytes:
    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if kind != b"multipart/form-data" or not boundary:
        raise InvalidRequest("The Content-Type must be multipart/form-data and have a boundary.")
    return boundary


def _text(data: bytes) -> str:
    """Names and values come in UTF-8, as browsers and stock clients send them."""
    return data.decode("utf-8", errors="replace")


def _malformed() -> InvalidRequest:
    return InvalidRequest("The body is not valid multipart/form-data.")
