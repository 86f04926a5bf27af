"""Messages of a chat, as clients send them and as chat templates expect them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from api.json_body import parse_json_object
from api.schemas.strict import IGNORE_UNKNOWN, Strict, mistake
from tasks.errors import InvalidRequest

MAX_PARTS = 256
MAX_TOOL_CALLS = 128

# Kinds of content that OpenAI has and no model here takes; named, so that the error can say so.
_OTHER_MEDIA = frozenset(
    {"image_url", "input_image", "input_audio", "file", "input_file", "audio", "video_url"}
)


# One of two forms becomes the other before validation: an error in a union would name both.
def text_as_parts(value: Any) -> Any:
    """A bare text as the one part of a content; other media are refused by name."""
    if isinstance(value, str):
        return [{"type": "text", "text": value}]
    if isinstance(value, list):
        for part in value:
            kind = part.get("type") if isinstance(part, dict) else None
            if isinstance(kind, str) and kind in _OTHER_MEDIA:
                raise ValueError(f"Content of the type '{kind}' is not supported; send text.")
    return value


def arguments_for_template(text: str) -> Any:
    """Arguments of a call as the object that templates expect; the text where it is none that could
    stand in a body (a model's, cut short or nested for ever).
    """
    try:
        return parse_json_object(text.encode())
    except InvalidRequest:
        return text


class TextPart(Strict):
    """A piece of a message's content."""

    type: Literal["text"]
    text: str


class CalledFunction(Strict):
    """A function the assistant called, and its arguments as text of JSON."""

    name: Annotated[str, Field(min_length=1, max_length=64)]
    arguments: str

    def for_template(self) -> dict[str, Any]:
        """With the arguments taken apart, as templates expect them, where they are an object."""
        return {"name": self.name, "arguments": arguments_for_template(self.arguments)}


class ToolCall(Strict):
    """A call in a message of the assistant."""

    id: Annotated[str, Field(min_length=1, max_length=128)]
    type: Literal["function"] = "function"
    function: CalledFunction


class Message(Strict):
    """One message of a chat."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: (
        Annotated[
            Sequence[TextPart],
            BeforeValidator(text_as_parts, json_schema_input_type=str | Sequence[TextPart]),
            Field(min_length=1, max_length=MAX_PARTS),
        ]
        | None
    ) = None
    name: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    tool_calls: Annotated[Sequence[ToolCall], Field(max_length=MAX_TOOL_CALLS)] | None = None
    tool_call_id: Annotated[str, Field(max_length=128)] | None = None

    @model_validator(mode="after")
    def _fields_of_its_role(self) -> Message:
        if self.content is None and not self.tool_calls:
            raise mistake("Give 'content'.", "content")
        if self.tool_calls and self.role != "assistant":
            raise mistake("Only messages of the assistant have 'tool_calls'.", "tool_calls")
        if self.role == "tool" and self.tool_call_id is None:
            message = "A message of the role 'tool' needs its 'tool_call_id'."
            raise mistake(message, "tool_call_id")
        return self

    def for_template(self) -> dict[str, Any]:
        """As chat templates expect it: the content is one text."""
        content = "\n".join(part.text for part in self.content or ())
        message: dict[str, Any] = {"role": self.role, "content": content}
        if self.name:
            message["name"] = self.name
        if self.tool_call_id is not None:
            message["tool_call_id"] = self.tool_call_id
        if self.tool_calls:
            message["tool_calls"] = [
                {"id": call.id, "type": "function", "function": call.function.for_template()}
                for call in self.tool_calls
            ]
        return message


class OpenTextPart(TextPart):
    """A piece of content from a client that may know more of it than we do."""

    model_config = IGNORE_UNKNOWN


class OpenCalledFunction(CalledFunction):
    """The same of a function."""

    model_config = IGNORE_UNKNOWN


class OpenToolCall(ToolCall):
    """The same of a call."""

    model_config = IGNORE_UNKNOWN

    function: OpenCalledFunction


class OpenMessage(Message):
    """The same of a message: clients send the assistant's back with all that came with it."""

    model_config = IGNORE_UNKNOWN

    content: (
        Annotated[
            Sequence[OpenTextPart],
            BeforeValidator(text_as_parts, json_schema_input_type=str | Sequence[OpenTextPart]),
            Field(min_length=1, max_length=MAX_PARTS),
        ]
        | None
    ) = None
    tool_calls: Annotated[Sequence[OpenToolCall], Field(max_length=MAX_TOOL_CALLS)] | None = None
