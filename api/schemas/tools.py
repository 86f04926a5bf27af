"""The tools of a request in the form of chat completions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from api.grammars.finite import Looks, can_end
from api.schemas.strict import IGNORE_UNKNOWN, Strict
from api.tools.request import Tool, ToolMode, ToolUse
from tasks.errors import InvalidGrammar

MAX_TOOLS = 128
FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
_ANYTHING = {"type": "object", "properties": {}}


class Function(Strict):
    """What a function takes, as a JSON schema."""

    model_config = IGNORE_UNKNOWN

    name: FunctionName
    description: Annotated[str, Field(max_length=16_384)] | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FunctionTool(Strict):
    """A tool. Functions are the only kind there is here."""

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

    mode: Literal["none", "auto", "required"]
    names: list[FunctionName] | None = None
    is_single: bool = False  # a function by its name is called once


def _tool_choice(value: Any) -> Any:
    """OpenAI's text and two objects as one."""
    if isinstance(value, str):
        return {"mode": value}
    if not isinstance(value, dict):
        return value
    if value.get("type") == "allowed_tools":
        allowed = value.get("allowed_tools") or value  # chat has it inside, responses beside
        tools = allowed.get("tools") if isinstance(allowed, dict) else None
        if not isinstance(tools, list):
            raise ValueError("'allowed_tools' needs a list of tools.")
        return {"mode": allowed.get("mode"), "names": [_function_name(tool) for tool in tools]}
    if value.get("type") == "function":
        return {"mode": "required", "names": [_function_name(value)], "is_single": True}
    raise ValueError("Give 'none', 'auto', 'required', a function, or 'allowed_tools'.")


def _function_name(value: Any) -> Any:
    """Of chat's `{"function": {"name"}}` or of responses' `{"name"}`."""
    if isinstance(value, dict):
        function = value.get("function", value)
        return function.get("name") if isinstance(function, dict) else None
    return None


_ToolChoiceForms = Literal["none", "auto", "required"] | dict[str, Any] | None
ToolChoiceField = Annotated[
    ToolChoice | None, BeforeValidator(_tool_choice, json_schema_input_type=_ToolChoiceForms)
]


class ToolFields(Strict):
    """What the model may call."""

    tools: Annotated[list[FunctionTool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoiceField = None
    parallel_tool_calls: bool | None = None

    @model_validator(mode="after")
    def _choice_names_tools(self) -> ToolFields:
        check_tools([tool.function.name for tool in self.tools or ()], self.tool_choice)
        return self

    def tool_use(self) -> ToolUse | None:
        """In no dialect; None where nothing may be called."""
        tools = [tool.tool() for tool in self.tools or ()]
        return tool_use(tools, self.tool_choice, is_parallel=self.parallel_tool_calls is not False)


def check_tools(names: list[str], choice: ToolChoice | None) -> None:
    """Raise ValueError for names that repeat or that a choice makes up."""
    if len(set(names)) < len(names):
        raise ValueError("Two tools have the same name.")
    if choice is None:
        return
    if choice.mode != "none" and not names and choice.mode != "auto":
        raise ValueError("'tool_choice' asks for a call, but there are no 'tools'.")
    if set(choice.names or ()) - set(names):
        raise ValueError("'tool_choice' names a function that is not among the 'tools'.")


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
