"""The body of `POST /v1/responses`. Names and meanings are OpenAI's, extras vLLM's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from api.generation import Generation, TokenLimit
from api.grammars.formats import requested_form
from api.prompts.prompt import ChatPrompt
from api.schemas.chat import WaitingFields
from api.schemas.jobs import MAX_MESSAGES, ModelName, refuse_asked
from api.schemas.messages import MAX_PARTS, arguments_for_template, text_as_parts
from api.schemas.sampling import MAX_TOP_LOGPROBS, Count, SamplingFields
from api.schemas.strict import IGNORE_UNKNOWN, NoEffect, Strict
from api.schemas.structured_outputs import (
    JsonSchemaFormat,
    ResponseFormat,
    SchemaDescription,
    SchemaName,
    StructuredOutputFields,
    StructuredOutputs,
)
from api.schemas.tools import (
    MAX_TOOLS,
    Function,
    FunctionName,
    ToolChoiceField,
    check_tools,
    tool_use,
)
from api.tools.request import Tool, ToolUse
from tasks.errors import InvalidRequest
from tasks.jobs import Dialect

PATH = "/v1/responses"
LOGPROBS = "message.output_text.logprobs"


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


ItemType = Literal["message", "function_call", "function_call_output"]


class InputItem(Strict):
    """One item of the input: a message, a call of a function, or what came out of one."""

    model_config = IGNORE_UNKNOWN

    type: ItemType = "message"
    id: Annotated[str, Field(max_length=128)] | None = None
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: Content | None = None
    call_id: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    name: FunctionName | None = None
    arguments: str | None = None
    output: Content | None = None

    @field_validator("type", mode="before", json_schema_input_type=ItemType | None)
    @classmethod
    def _null_is_message(cls, value: Any) -> Any:
        return "message" if value is None else value

    @model_validator(mode="after")
    def _fields_of_its_type(self) -> InputItem:
        needed = {
            "message": ("role", "content"),
            "function_call": ("call_id", "name", "arguments"),
            "function_call_output": ("call_id", "output"),
        }
        for name in needed[self.type]:
            if getattr(self, name) is None:
                raise ValueError(f"An item of the type '{self.type}' needs '{name}'.")
        return self


class TextFormat(Strict):
    """The form of the answer; a schema stands beside its type here."""

    model_config = IGNORE_UNKNOWN

    type: Literal["text", "json_object", "json_schema"]
    name: SchemaName | None = None
    description: SchemaDescription | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None

    def response_format(self) -> ResponseFormat:
        """As chat completions have it."""
        if self.type != "json_schema":
            return ResponseFormat(type=self.type)
        fields = {"name": self.name, "description": self.description, "schema": self.schema_}
        schema = JsonSchemaFormat.model_validate(fields | {"strict": self.strict})
        return ResponseFormat(type=self.type, json_schema=schema)

    @model_validator(mode="after")
    def _schema_with_its_type(self) -> TextFormat:
        if self.type != "json_schema" and self.schema_ is not None:
            raise ValueError("Give 'schema' with the type 'json_schema', and with no other.")
        if self.type == "json_schema" and (self.name is None or self.schema_ is None):
            raise ValueError("A format of the type 'json_schema' needs 'name' and 'schema'.")
        return self


class TextOptions(Strict):
    """What the text is to be like."""

    model_config = IGNORE_UNKNOWN

    format: TextFormat | None = None
    verbosity: Literal["medium"] | None = None


class ResponseTool(Function):
    """A function; its fields stand beside the type here."""

    type: Literal["function"]

    def tool(self) -> Tool:
        """In no dialect."""
        parameters = self.parameters or {"type": "object", "properties": {}}
        return Tool(self.name, self.description, parameters, is_strict=bool(self.strict))


class Reasoning(Strict):
    """No model here has an effort to choose."""

    model_config = IGNORE_UNKNOWN

    effort: Literal["none"] | None = None


def _text_as_items(value: Any) -> Any:
    return [{"role": "user", "content": value}] if isinstance(value, str) else value


class CreateResponse(SamplingFields, WaitingFields):
    """What a client may ask for."""

    model_config = IGNORE_UNKNOWN

    input: Annotated[
        list[InputItem],
        BeforeValidator(_text_as_items, json_schema_input_type=str | list[InputItem]),
        Field(min_length=1, max_length=MAX_MESSAGES),
    ]
    instructions: str | None = None
    previous_response_id: Annotated[str, Field(max_length=64)] | None = None
    background: bool | None = None
    max_output_tokens: Count | None = None
    max_tool_calls: Annotated[int | None, NoEffect()] = None  # of tools that OpenAI runs
    include: list[str] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    text: TextOptions | None = None
    structured_outputs: StructuredOutputs | None = None
    tools: Annotated[list[ResponseTool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoiceField = None
    parallel_tool_calls: bool | None = None
    truncation: Literal["auto", "disabled"] | None = None
    reasoning: Reasoning | None = None
    conversation: Any = None
    prompt: Any = None
    response_format: Any = None

    @model_validator(mode="after")
    def _combinations(self) -> CreateResponse:
        check_tools([tool.name for tool in self.tools or ()], self.tool_choice)
        if self.has_logprobs and self.tools and not self._calls_nothing:
            raise ValueError("Log probabilities are not given where 'tools' may be called.")
        if self.background and self.store is False:
            raise ValueError("'background' needs 'store': there would be nothing to come back for.")
        return self

    @property
    def _calls_nothing(self) -> bool:
        return self.tool_choice is not None and self.tool_choice.mode == "none"

    @property
    def has_logprobs(self) -> bool:
        """Whether the client wants to know how likely the tokens were."""
        return LOGPROBS in (self.include or ()) or bool(self.top_logprobs)

    def generation(self) -> Generation:
        """In no dialect, without the responses that this one goes on from (`going_on`)."""
        refuse_asked(self, _REFUSALS)
        tools = self._tool_use()
        listed = [tool.for_template() for tool in tools.tools] if tools else None
        messages = [*self._head(), *messages_of(self.input)]
        return Generation(
            dialect=Dialect.RESPONSE,
            path=PATH,
            model=self.model,
            prompt=ChatPrompt(messages, listed),
            prompt_param="input",
            sampling=self.sampling() | self._logprob_sampling(),
            token_limit=TokenLimit(self.max_output_tokens, "max_output_tokens"),
            form=requested_form(self._form_fields()),
            tools=tools,
            truncates_prompt=self.truncation == "auto",
            service_tier=self.tier,
            deadline_s=self.deadline_s,
            metadata=self.metadata or {},
            end_user=self.end_user,
            is_background=bool(self.background),
            is_stored=self.store is not False,
            on_disconnect=self.on_disconnect,
        )

    def going_on(self, generation: Generation, earlier: Sequence[Mapping[str, Any]]) -> Generation:
        """The same behind the messages of the responses that this one goes on from."""
        prompt = generation.prompt
        assert isinstance(prompt, ChatPrompt)
        num_head = len(self._head())
        messages = [*prompt.messages[:num_head], *earlier, *prompt.messages[num_head:]]
        return replace(generation, prompt=ChatPrompt(messages, prompt.tools))

    def _head(self) -> list[dict[str, Any]]:
        return [{"role": "system", "content": self.instructions}] if self.instructions else []

    def _tool_use(self) -> ToolUse | None:
        tools = [tool.tool() for tool in self.tools or ()]
        return tool_use(tools, self.tool_choice, is_parallel=self.parallel_tool_calls is not False)

    def _logprob_sampling(self) -> dict[str, Any]:
        return {"logprobs": self.top_logprobs or 0} if self.has_logprobs else {}

    def _form_fields(self) -> StructuredOutputFields:
        format_ = self.text.format if self.text else None
        return StructuredOutputFields(
            response_format=format_.response_format() if format_ else None,
            structured_outputs=self.structured_outputs,
        )


class CountInput(CreateResponse):
    """The body of `POST /v1/responses/input_tokens`: a request of which parts may be missing."""

    model: ModelName | None = None  # type: ignore[assignment]  # that of the previous response
    input: Annotated[
        list[InputItem],
        BeforeValidator(_text_as_items, json_schema_input_type=str | list[InputItem] | None),
        Field(default_factory=list, max_length=MAX_MESSAGES),
    ]

    @field_validator("input", mode="before")
    @classmethod
    def _null_is_nothing(cls, value: Any) -> Any:
        return [] if value is None else value

    @model_validator(mode="after")
    def _something_to_count(self) -> CountInput:
        if not self.input and not self.instructions and self.previous_response_id is None:
            raise ValueError("Give 'input', 'instructions' or 'previous_response_id'.")
        return self


def messages_of(items: Sequence[InputItem]) -> list[dict[str, Any]]:
    """Items as the messages of a chat; calls that follow each other are of one message."""
    messages: list[dict[str, Any]] = []
    for item in items:
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
        return [InputItem.model_validate(item) for item in _text_as_items(value)]
    except (TypeError, ValueError):
        raise InvalidRequest("The earlier response can't be read.") from None


def _text(content: Sequence[ContentPart] | None) -> str:
    return "\n".join(part.text for part in content or ())


_REFUSALS: dict[str, tuple[tuple[Any, ...], str]] = {
    "conversation": ((None,), "'conversation' is not supported; use 'previous_response_id'."),
    "response_format": ((None,), "'response_format' is 'text.format' here."),
    "prompt": ((None,), "'prompt' is not supported; send 'instructions' and 'input'."),
}
