"""The body of `POST /v1/responses`. Names and meanings are OpenAI's, extras vLLM's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from api.generation import Generation, TokenLimit
from api.grammars.formats import requested_form
from api.prompts.prompt import ChatPrompt
from api.schemas.chat import WaitingFields
from api.schemas.jobs import MAX_MESSAGES, ModelName, refuse_asked
from api.schemas.response_items import AnyItem, Input, messages_of, text_as_items
from api.schemas.sampling import MAX_TOP_LOGPROBS, Count, SamplingFields
from api.schemas.strict import IGNORE_UNKNOWN, NoEffect, OrSkipped, Skipped, Strict, mistake
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
    AnyTool,
    Function,
    ToolChoiceField,
    check_tools,
    skipped_types,
    tool_use,
)
from api.tools.request import Tool, ToolUse
from tasks.jobs import Dialect

PATH = "/v1/responses"
LOGPROBS = "message.output_text.logprobs"


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
            message = "A format of the type 'json_schema' needs 'name' and 'schema'."
            raise mistake(message, "name" if self.name is None else "schema")
        return self


class TextOptions(Strict):
    """What the text is to be like."""

    model_config = IGNORE_UNKNOWN

    format: TextFormat | None = None
    verbosity: str | None = None


class ResponseTool(AnyTool, Function):
    """A function; its fields stand beside the type here."""

    type: Literal["function"]

    def tool(self) -> Tool:
        """In no dialect."""
        parameters = self.parameters or {"type": "object", "properties": {}}
        return Tool(self.name, self.description, parameters, is_strict=bool(self.strict))


class Reasoning(Strict):
    """No model here reasons apart from its answer: there is no effort to choose, and no summary."""

    model_config = IGNORE_UNKNOWN

    effort: str | None = None
    summary: str | None = None
    generate_summary: str | None = None

    @property
    def is_asked_for(self) -> bool:
        """Whether more is wanted than what every answer has."""
        return self.effort not in (None, "none") or bool(self.summary or self.generate_summary)


class CreateResponse(SamplingFields, WaitingFields):
    """What a client may ask for."""

    model_config = IGNORE_UNKNOWN

    input: Annotated[Input, Field(min_length=1)]
    instructions: str | None = None
    previous_response_id: Annotated[str, Field(max_length=64)] | None = None
    background: bool | None = None
    max_output_tokens: Count | None = None
    max_tool_calls: Annotated[int | None, NoEffect()] = None  # of tools that OpenAI runs
    include: list[str] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    text: TextOptions | None = None
    structured_outputs: StructuredOutputs | None = None
    tools: (
        Annotated[list[Annotated[ResponseTool | Skipped, OrSkipped()]], Field(max_length=MAX_TOOLS)]
        | None
    ) = None
    tool_choice: ToolChoiceField = None
    parallel_tool_calls: bool | None = None
    truncation: Literal["auto", "disabled"] | None = None
    reasoning: Reasoning | None = None
    conversation: Any = None
    prompt: Any = None
    response_format: Any = None

    @model_validator(mode="after")
    def _combinations(self) -> CreateResponse:
        check_tools(self.tools or (), self.tool_choice, lambda tool: tool.name)
        if self.has_logprobs and self._tool_use() is not None:
            message = "Log probabilities are not given where 'tools' may be called."
            raise mistake(message, "top_logprobs" if self.top_logprobs else "include")
        if self.background and self.store is False:
            message = "'background' needs 'store': there would be nothing to come back for."
            raise mistake(message, "background")
        if self.input and all(isinstance(item, Skipped) for item in self.input):
            raise mistake("No item of the 'input' is one that a text model can use.", "input")
        return self

    @property
    def has_logprobs(self) -> bool:
        """Whether the client wants to know how likely the tokens were."""
        return LOGPROBS in (self.include or ()) or bool(self.top_logprobs)

    def ignored(self) -> Iterator[str]:
        """What was asked for and changes no text model's answer."""
        if self.reasoning and self.reasoning.is_asked_for:
            yield "reasoning"
        if self.text and self.text.verbosity not in (None, "medium"):
            yield "text.verbosity"
        yield from (f"include.{name}" for name in self.include or () if name != LOGPROBS)
        yield from (f"tools.{type_}" for type_ in skipped_types(self.tools))
        yield from (f"input.{type_}" for type_ in skipped_types(self.input))

    def generation(self) -> Generation:
        """In no dialect, without what it only names: earlier responses, and items of them."""
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

    def with_messages(
        self, generation: Generation, messages: Sequence[Mapping[str, Any]]
    ) -> Generation:
        """The same with a whole conversation behind the instructions."""
        assert isinstance(generation.prompt, ChatPrompt)
        prompt = ChatPrompt([*self._head(), *messages], generation.prompt.tools)
        return replace(generation, prompt=prompt)

    def _head(self) -> list[dict[str, Any]]:
        return [{"role": "system", "content": self.instructions}] if self.instructions else []

    def _tool_use(self) -> ToolUse | None:
        tools = [tool.tool() for tool in self.tools or () if isinstance(tool, ResponseTool)]
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
        list[AnyItem],
        BeforeValidator(text_as_items, json_schema_input_type=str | list[AnyItem] | None),
        Field(default_factory=list, max_length=MAX_MESSAGES),
    ]

    @field_validator("input", mode="before")
    @classmethod
    def _null_is_nothing(cls, value: Any) -> Any:
        return [] if value is None else value

    @model_validator(mode="after")
    def _something_to_count(self) -> CountInput:
        if not self.input and not self.instructions and self.previous_response_id is None:
            raise mistake("Give 'input', 'instructions' or 'previous_response_id'.", "input")
        return self


_REFUSALS: dict[str, tuple[tuple[Any, ...], str]] = {
    "conversation": ((None,), "'conversation' is not supported; use 'previous_response_id'."),
    "response_format": ((None,), "'response_format' is 'text.format' here."),
    "prompt": ((None,), "'prompt' is not supported; send 'instructions' and 'input'."),
}
