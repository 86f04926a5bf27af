"""The body of `POST /v1/jobs`. Strict: no unknown fields, no conversions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from api.generation import Generation, TokenLimit
from api.grammars.formats import requested_form
from api.prompts.prompt import ChatPrompt, Prompt, TextPrompt
from api.schemas.messages import Message
from api.schemas.sampling import ChoiceFields, Count, SamplingFields
from api.schemas.strict import Skipped, Strict, at_most, mistake
from api.schemas.structured_outputs import StructuredOutputFields
from api.schemas.tools import ToolFields
from api.settings import MAX_DEADLINE_S
from api.tools.request import ToolUse
from tasks.errors import UnsupportedParameter
from tasks.jobs import Dialect, OnDisconnect

PATH = "/v1/jobs"
MAX_MESSAGES = 2_048
MetadataKey = Annotated[str, Field(max_length=64)]
MetadataValue = Annotated[str, Field(max_length=512)]
_MAX_METADATA = 16
Metadata = Annotated[
    dict[MetadataKey, MetadataValue], at_most(_MAX_METADATA), Field(max_length=_MAX_METADATA)
]
ModelName = Annotated[str, Field(min_length=1, max_length=128)]
EndUser = Annotated[str, Field(max_length=256)]
Deadline = Annotated[float, Field(ge=1.0, le=MAX_DEADLINE_S)]
Tier = Literal["auto", "default", "flex", "priority", "batch"]

_LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")


class CreateJob(SamplingFields, ChoiceFields, StructuredOutputFields, ToolFields):
    """What a client may ask for."""

    model: ModelName
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)] | None = None
    prompt: Annotated[str, Field(min_length=1)] | None = None
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    max_output_tokens: Count | None = None
    metadata: Metadata | None = None
    user: EndUser | None = None
    service_tier: Tier = "auto"
    deadline_s: Deadline | None = None
    on_disconnect: OnDisconnect | None = Field(default=None, strict=False)
    stream: bool | None = None

    @field_validator("service_tier", mode="before", json_schema_input_type=Tier | None)
    @classmethod
    def _null_is_auto(cls, value: Any) -> Any:
        return "auto" if value is None else value

    @model_validator(mode="after")
    def _one_prompt_and_one_limit(self) -> CreateJob:
        if (self.messages is None) == (self.prompt is None):
            param = "messages" if self.messages is None else "prompt"
            raise mistake("Give either 'messages' or 'prompt'.", param)
        if self.messages is None and self.tools:
            raise mistake("'tools' need 'messages'.", "tools")
        if len(limits := list(self._limits())) > 1:
            raise mistake(f"Give one of {', '.join(_LIMITS)}.", limits[1])
        return self

    def generation(self) -> Generation:
        """In no dialect. Raises InvalidRequest and its like."""
        for place, tool in enumerate(self.tools or ()):
            if isinstance(tool, Skipped):  # strict: nothing is left out here
                message = "Tools of other types than 'function' are not supported."
                raise UnsupportedParameter(message, param=f"tools.{place}.type")
        if self.stream:
            message = "Jobs are not streamed by this call; read the events at the job's events_url."
            raise UnsupportedParameter(message, param="stream")
        tools = self.tool_use()
        form = requested_form(self)
        return Generation(
            dialect=Dialect.JOB,
            path=PATH,
            model=self.model,
            prompt=self._prompt(tools),
            prompt_param="prompt" if self.messages is None else "messages",
            sampling=self.sampling() | self.logprob_sampling(),
            token_limit=self._token_limit(),
            num_choices=self.num_choices,
            form=form,
            tools=tools,
            service_tier=self.service_tier,
            deadline_s=self.deadline_s,
            metadata=self.metadata or {},
            end_user=self.user,
            on_disconnect=self.on_disconnect,
        )

    def _prompt(self, tools: ToolUse | None) -> Prompt:
        if self.messages is None:
            assert self.prompt is not None
            return TextPrompt(self.prompt)
        return chat_prompt(self.messages, tools)

    def _token_limit(self) -> TokenLimit:
        for name, value in self._limits().items():
            return TokenLimit(value, name)
        return TokenLimit(None, _LIMITS[0])

    def _limits(self) -> dict[str, int]:
        values = {name: getattr(self, name) for name in _LIMITS}
        return {name: value for name, value in values.items() if value is not None}


def chat_prompt(messages: Sequence[Message], use: ToolUse | None) -> ChatPrompt:
    """The conversation, with the tools if any may be called."""
    listed = [tool.for_template() for tool in use.tools] if use else None
    return ChatPrompt([message.for_template() for message in messages], listed)


def refuse_asked(fields: Strict, refusals: dict[str, tuple[tuple[Any, ...], str]]) -> None:
    """Raise UnsupportedParameter for a field that asks for more than its neutral values do."""
    for name, (neutral, message) in refusals.items():
        if getattr(fields, name) not in neutral:
            raise UnsupportedParameter(message, param=name)
