"""The tools of a request in the form of chat completions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from api.grammars.finite import Looks, can_end
from api.schemas.strict import (
    IGNORE_UNKNOWN,
    OrSkipped,
    Skipped,
    Strict,
    mistake,
    type_of,
    unsupported,
)
from api.tools.request import Tool, ToolMode, ToolUse
from tasks.errors import InvalidGrammar

MAX_TOOLS = 128
FUNCTION = "function"
FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
ToolChoiceMode = Literal["none", "auto", "required"]
_MODES = get_args(ToolChoiceMode)
_CHOICES = "'tool_choice' is 'none', 'auto', 'required', a function, or 'allowed_tools'."
_ANYTHING = {"type": "object", "properties": {}}


class Function(Strict):
    """What a function takes, as a JSON schema."""

    model_config = IGNORE_UNKNOWN

    name: FunctionName
    description: Annotated[str, Field(max_length=16_384)] | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class AnyTool(Strict):
    """A tool. Functions are the only kind there is here; the others are skipped, and named."""

    @classmethod
    def skips(cls, item: Any) -> bool:
        """Clients offer what they have to every model, such as a search."""
        return type_of(item) not in (None, FUNCTION)


class FunctionTool(AnyTool):
    """A function in the form of chat completions."""

    model_config = IGNORE_UNKNOWN

    type: Literal["function"]
    function: Function

    def tool(self) -> Tool:
        """In no dialect."""
        function = self.function
        return Tool(
            function.name,
            function.description,
            function.parameters or _ANYTHING,
            is_strict=bool(function.strict),
        )


class ToolChoice(Strict):
    """`tool_choice` in one form: a mode, and the names it is limited to."""

    mode: ToolChoiceMode
    names: list[str] | None = None
    is_single: bool = False  # a function by its name is called once


def _tool_choice(value: Any) -> Any:
    """OpenAI's text and two objects as one."""
    if value is None or (isinstance(value, str) and value in _MODES):
        return {"mode": value} if value else None
    kind = type_of(value)
    if kind == "allowed_tools":
        # Chat has it inside, responses beside.
        return _allowed_tools(value.get("allowed_tools") or value)
    if kind == FUNCTION:
        return ToolChoice(mode="required", names=[_function_name(value)], is_single=True)
    if kind is None:
        raise mistake(_CHOICES)
    raise unsupported("'tool_choice' asks for a tool that is no function; there are no others.")


def _allowed_tools(allowed: Any) -> ToolChoice:
    tools = allowed.get("tools") if isinstance(allowed, dict) else None
    if not isinstance(tools, list) or not tools:
        raise mistake("'allowed_tools' needs a list of tools.")
    if allowed.get("mode") not in ("auto", "required"):
        raise mistake("The mode of 'allowed_tools' is 'auto' or 'required'.")
    names = [_function_name(tool) for tool in tools if not AnyTool.skips(tool)]
    if names:
        return ToolChoice(mode=allowed["mode"], names=names)
    if allowed["mode"] == "required":
        raise unsupported("'tool_choice' asks for a tool that is no function; there are no others.")
    return ToolChoice(mode="none")


def _function_name(value: Any) -> str:
    """Of chat's `{"function": {"name"}}` or of responses' `{"name"}`."""
    function = value.get("function", value) if isinstance(value, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str):
        raise mistake("A function in 'tool_choice' needs its 'name'.")
    return name


_ToolChoiceForms = ToolChoiceMode | dict[str, Any] | None
ToolChoiceField = Annotated[
    ToolChoice | None, BeforeValidator(_tool_choice, json_schema_input_type=_ToolChoiceForms)
]


class ToolFields(Strict):
    """What the model may call."""

    tools: (
        Annotated[list[Annotated[FunctionTool | Skipped, OrSkipped()]], Field(max_length=MAX_TOOLS)]
        | None
    ) = None
    tool_choice: ToolChoiceField = None
    parallel_tool_calls: bool | None = None

    @model_validator(mode="after")
    def _choice_names_tools(self) -> ToolFields:
        check_tools(self.tools or (), self.tool_choice, lambda tool: tool.function.name)
        return self

    def tool_use(self) -> ToolUse | None:
        """In no dialect; None where nothing may be called."""
        tools = [tool.tool() for tool in self.tools or () if isinstance(tool, FunctionTool)]
        return tool_use(tools, self.tool_choice, is_parallel=self.parallel_tool_calls is not False)


F = TypeVar("F", bound=Strict)


def check_tools(
    tools: Sequence[F | Skipped], choice: ToolChoice | None, name_of: Callable[[F], str]
) -> None:
    """Raise for names that repeat, and for a choice of what is not there or skipped."""
    names: set[str] = set()
    for place, tool in enumerate(tools):
        if isinstance(tool, Skipped):
            continue
        if (name := name_of(tool)) in names:
            raise mistake("Two tools have the same name.", f"tools.{place}")
        names.add(name)
    if choice is None:
        return
    if choice.mode == "required" and not names:
        raise _nothing_to_call(has_others=bool(tools))
    if set(choice.names or ()) - names:
        message = "'tool_choice' names a function that is not among the 'tools'."
        raise mistake(message, "tool_choice")


def _nothing_to_call(*, has_others: bool) -> PydanticCustomError:
    if has_others:
        message = "'tool_choice' asks for a call, but none of the 'tools' is a function."
        return unsupported(message, "tool_choice")
    return mistake("'tool_choice' asks for a call, but there are no 'tools'.", "tool_choice")


def skipped_types(items: Iterable[object] | None) -> Iterator[str]:
    """What was left out of a list, by its types."""
    return (item.type for item in items or () if isinstance(item, Skipped))


def tool_use(tools: list[Tool], choice: ToolChoice | None, *, is_parallel: bool) -> ToolUse | None:
    """What may be called; None if nothing. Raises InvalidGrammar for what nobody can call."""
    mode = choice.mode if choice else "auto"
    if not tools or mode == "none":
        return None
    names = choice.names if choice and choice.names else [tool.name for tool in tools]
    use = ToolUse(
        tools=tools,
        mode=ToolMode(mode),
        callable_names=frozenset(names),
        is_parallel=is_parallel and not (choice and choice.is_single),
    )
    _refuse_endless(use)
    return use


def _refuse_endless(use: ToolUse) -> None:
    looks = Looks()
    for tool in use.callable:
        if not can_end(tool.parameters, looks):
            message = f"No finite text satisfies the parameters of the tool '{tool.name}'."
            raise InvalidGrammar(message, param=use.param)
