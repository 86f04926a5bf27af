"""The items of a response's input, and the messages of a chat that they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from api.schemas.jobs import MAX_MESSAGES
from api.schemas.messages import MAX_PARTS, arguments_for_template, text_as_parts
from api.schemas.strict import IGNORE_UNKNOWN, OrSkipped, Skipped, Strict, mistake, type_of
from api.schemas.tools import FunctionName
from tasks.errors import InvalidRequest

REFERENCE = "item_reference"
ItemType = Literal["message", "function_call", "function_call_output", "item_reference"]

# What clients send back of other models' answers. All calls of tools that are no functions, and
# what came out of them, are named by their ends.
_UNUSABLE_ENDS = ("_call", "_call_output")
_UNUSABLE = frozenset(
    {
        *("reasoning", "compaction", "compaction_trigger", "context_compaction"),
        *("mcp_list_tools", "mcp_approval_request", "mcp_approval_response"),
        *("tool_search_output", "additional_tools", "program", "program_output"),
        *("ghost_snapshot", "agent_message"),
    }
)
_NEEDED: dict[str, tuple[str, ...]] = {
    "message": ("role", "content"),
    "function_call": ("call_id", "name", "arguments"),
    "function_call_output": ("call_id", "output"),
    "item_reference": ("id",),
}


class ContentPart(Strict):
    """A piece of a message, of the client or of an earlier answer."""

    model_config = IGNORE_UNKNOWN

    type: Literal["input_text", "output_text", "text"]
    text: str


Content = Annotated[
    Sequence[ContentPart],
    BeforeValidator(text_as_parts, json_schema_input_type=str | Sequence[ContentPart]),
    Field(max_length=MAX_PARTS),
]


class InputItem(Strict):
    """One item of the input: a message, a call of a function, what came out of one, or an item of
    an earlier response by its id. What no text model can use is skipped, and named.
    """

    model_config = IGNORE_UNKNOWN

    type: ItemType = "message"
    id: Annotated[str, Field(max_length=128)] | None = None
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: Content | None = None
    call_id: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    name: FunctionName | None = None
    arguments: str | None = None
    output: Content | None = None

    @classmethod
    def skips(cls, item: Any) -> bool:
        """Not every unknown type: one that is misspelt is a mistake."""
        kind = type_of(item)
        if kind == REFERENCE:  # to what nothing here ever makes
            return str(item.get("id")).startswith("rs_")
        if kind is None or kind in _NEEDED:
            return False
        return kind in _UNUSABLE or kind.endswith(_UNUSABLE_ENDS)

    @model_validator(mode="before")
    @classmethod
    def _nothing_but_an_id(cls, value: Any) -> Any:
        """The type of a reference may be left out."""
        if isinstance(value, dict) and value.keys() <= {"type", "id"} and _has_id_alone(value):
            return {**value, "type": REFERENCE}
        return value

    @field_validator("type", mode="before", json_schema_input_type=ItemType | None)
    @classmethod
    def _null_is_message(cls, value: Any) -> Any:
        return "message" if value is None else value

    @model_validator(mode="after")
    def _fields_of_its_type(self) -> InputItem:
        for name in _NEEDED[self.type]:
            if getattr(self, name) is None:
                raise mistake(f"An item of the type '{self.type}' needs '{name}'.", name)
        return self


def _has_id_alone(item: Mapping[str, Any]) -> bool:
    return item.get("type") is None and item.get("id") is not None


def text_as_items(value: Any) -> Any:
    """A bare text as a message of the user."""
    return [{"role": "user", "content": value}] if isinstance(value, str) else value


AnyItem = Annotated[InputItem | Skipped, OrSkipped()]
Input = Annotated[
    list[AnyItem],
    BeforeValidator(text_as_items, json_schema_input_type=str | list[AnyItem]),
    Field(max_length=MAX_MESSAGES),
]


def messages_of(items: Sequence[InputItem | Skipped]) -> list[dict[str, Any]]:
    """Items as the messages of a chat; calls that follow each other are of one message.

    References are left out: what they name is to stand in their place (`api/references.py`).
    """
    messages: list[dict[str, Any]] = []
    for item in items:
        if isinstance(item, Skipped) or item.type == REFERENCE:
            continue
        if item.type == "message":
            messages.append({"role": item.role, "content": _text(item.content)})
        elif item.type == "function_call_output":
            output = _text(item.output)
            messages.append({"role": "tool", "tool_call_id": item.call_id, "content": output})
        else:
            if not messages or messages[-1]["role"] != "assistant":
                messages.append({"role": "assistant", "content": ""})
            arguments = arguments_for_template(item.arguments or "")
            function = {"name": item.name, "arguments": arguments}
            call = {"id": item.call_id, "type": "function", "function": function}
            messages[-1].setdefault("tool_calls", []).append(call)
    return messages


def items_of(value: Any) -> list[InputItem]:
    """The `input` of a stored request. Raises InvalidRequest for one that is none any more."""
    try:
        return [InputItem.model_validate(item) for item in text_as_items(value)]
    except (TypeError, ValueError):
        raise InvalidRequest("The earlier response can't be read.") from None


def _text(content: Sequence[ContentPart] | None) -> str:
    return "\n".join(part.text for part in content or ())
