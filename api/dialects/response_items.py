"""The output items of a response, made piece by piece: messages of text, and calls of functions.

One builder makes both the stream's events and the finished object, so that they can't differ.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from io import StringIO
from typing import Any
from uuid import UUID

from api.json_pieces import LaterList
from api.tools.calls import call_id
from api.tools.parser import CallArguments, CallBegin, CallEnd, Piece, TextPiece

# An event's type and its fields, without its number.
Draft = tuple[str, dict[str, Any]]


class ItemBuilder:
    """The items of one response. Feed it pieces in order, then close it once."""

    def __init__(self, job_id: UUID) -> None:
        self.items: list[dict[str, Any]] = []
        self._job_id = job_id
        self._is_open = False
        self._written = StringIO()  # the text or arguments of the open item

    def add(self, piece: Piece, logprobs: Sequence[dict[str, Any]] = ()) -> Iterator[Draft]:
        """Events of one more piece."""
        match piece:
            case TextPiece(text):
                if not self._is_open or self._last["type"] != "message":
                    yield from self.close("completed")
                    yield from self._open_message()
                yield self._text_delta(text, logprobs)
            case CallBegin(index, name):
                yield from self.close("completed")
                yield self._open_call(index, name)
            case CallArguments(_, text):
                self._written.write(text)
                yield "response.function_call_arguments.delta", {**self._place, "delta": text}
            case CallEnd():
                yield from self.close("completed")

    def close(
        self, status: str, logprobs: LaterList | Sequence[dict[str, Any]] = ()
    ) -> Iterator[Draft]:
        """Events that end the open item, if one is open. `status`: completed or incomplete;
        `logprobs` are those of all its text.
        """
        if not self._is_open:
            return
        self._is_open = False
        item = self._last
        item["status"] = status
        if item["type"] == "message":
            [part] = item["content"]
            part |= {"text": self._written.getvalue(), "logprobs": logprobs or []}
            place = {**self._place, "content_index": 0}
            text = {"text": part["text"], "logprobs": part["logprobs"]}
            yield "response.output_text.done", place | text
            yield "response.content_part.done", place | {"part": dict(part)}
        else:
            item["arguments"] = self._written.getvalue()
            fields = {"arguments": item["arguments"], "name": item["name"]}
            yield "response.function_call_arguments.done", {**self._place, **fields}
        yield "response.output_item.done", {"output_index": self._index, "item": dict(item)}

    @property
    def _last(self) -> dict[str, Any]:
        return self.items[-1]

    @property
    def _index(self) -> int:
        return len(self.items) - 1

    @property
    def _place(self) -> dict[str, Any]:
        return {"item_id": self._last["id"], "output_index": self._index}

    def _open_message(self) -> Iterator[Draft]:
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        item = self._open({"type": "message", "role": "assistant", "content": []}, "msg_")
        yield "response.output_item.added", {"output_index": self._index, "item": dict(item)}
        place = {**self._place, "content_index": 0}
        yield "response.content_part.added", place | {"part": dict(part)}
        item["content"] = [part]

    def _text_delta(self, text: str, logprobs: Sequence[dict[str, Any]]) -> Draft:
        self._written.write(text)
        place = {**self._place, "content_index": 0}
        return "response.output_text.delta", place | {"delta": text, "logprobs": list(logprobs)}

    def _open_call(self, index: int, name: str) -> Draft:
        call = {
            "type": "function_call",
            "call_id": call_id(self._job_id, 0, index),
            "name": name,
            "arguments": "",
        }
        item = self._open(call, "fc_")
        return "response.output_item.added", {"output_index": self._index, "item": dict(item)}

    def _open(self, fields: dict[str, Any], prefix: str) -> dict[str, Any]:
        id_ = f"{prefix}{self._job_id.hex}{len(self.items):02x}"
        self.items.append({"id": id_, "status": "in_progress", **fields})
        self._is_open = True
        self._written = StringIO()
        return self._last
