"""The body of `POST /v1/chat/completions`. Names and meanings are OpenAI's, extras vLLM's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from api.generation import Generation, TokenLimit
from api.grammars.formats import requested_form
from api.schemas.jobs import (
    MAX_MESSAGES,
    Deadline,
    EndUser,
    Metadata,
    ModelName,
    chat_prompt,
    refuse_asked,
)
from api.schemas.messages import OpenMessage
from api.schemas.sampling import ChoiceFields, Count, SamplingFields
from api.schemas.strict import IGNORE_UNKNOWN, NoEffect, Strict, mistake
from api.schemas.structured_outputs import StructuredOutputFields
from api.schemas.tools import ToolFields, skipped_types
from tasks.jobs import Dialect, OnDisconnect

PATH = "/v1/chat/completions"

# Tiers by OpenAI's names; the answer says the one really used.
Tier = Literal["auto", "default", "flex", "scale", "priority", "fast", "batch"]
_TIERS = {"fast": "priority", "scale": "auto"}


class StreamOptions(Strict):
    """What a stream is to hold beside its chunks."""

    model_config = IGNORE_UNKNOWN

    include_usage: bool | None = None
    include_obfuscation: Annotated[bool | None, NoEffect()] = None


class WaitingFields(Strict):
    """What all requests share whose clients wait for the answer."""

    model: ModelName
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    metadata: Metadata | None = None
    user: EndUser | None = None
    safety_identifier: EndUser | None = None
    prompt_cache_key: Annotated[str | None, Field(max_length=1_024), NoEffect()] = None
    service_tier: Tier = "auto"
    deadline_s: Deadline | None = None
    on_disconnect: OnDisconnect | None = Field(default=None, strict=False)
    store: bool | None = None

    @field_validator("service_tier", mode="before", json_schema_input_type=Tier | None)
    @classmethod
    def _null_is_auto(cls, value: Any) -> Any:
        return "auto" if value is None else value

    @model_validator(mode="after")
    def _options_of_a_stream(self) -> WaitingFields:
        if self.stream_options is not None and not self.stream:
            raise mistake("'stream_options' are for 'stream': true.", "stream_options")
        return self

    def ignored(self) -> Iterator[str]:
        """Names of fields that the schema knows and that have no effect here."""
        return iter(())

    @property
    def tier(self) -> str:
        """The tier asked for, by our name."""
        return _TIERS.get(self.service_tier, self.service_tier)

    @property
    def end_user(self) -> str | None:
        """Whom the client does this for."""
        return self.user if self.user is not None else self.safety_identifier


class CreateChatCompletion(
    SamplingFields, ChoiceFields, StructuredOutputFields, ToolFields, WaitingFields
):
    """What a client may ask for."""

    model_config = IGNORE_UNKNOWN

    messages: Annotated[list[OpenMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    # What no model here can do: refused where it would change the answer, else named as ignored.
    modalities: list[str] | None = None
    audio: Any = None
    functions: Any = None
    function_call: Any = None
    web_search_options: Any = None
    reasoning_effort: str | None = None
    verbosity: str | None = None
    prompt_logprobs: int | None = None  # vLLM's
    prediction: Annotated[Any, NoEffect()] = None  # a hint for speed

    @model_validator(mode="after")
    def _one_limit(self) -> CreateChatCompletion:
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            message = "Give either 'max_completion_tokens' or 'max_tokens'."
            raise mistake(message, "max_tokens")
        return self

    def ignored(self) -> Iterator[str]:
        """What was asked for and changes no text model's answer."""
        for name, neutral in _HINTS.items():
            if getattr(self, name) not in (None, neutral):
                yield name
        yield from (f"tools.{type_}" for type_ in skipped_types(self.tools))

    def generation(self) -> Generation:
        """In no dialect. Raises InvalidRequest and its like."""
        refuse_asked(self, _REFUSALS)
        tools = self.tool_use()
        return Generation(
            dialect=Dialect.CHAT,
            path=PATH,
            model=self.model,
            prompt=chat_prompt(self.messages, tools),
            prompt_param="messages",
            sampling=self.sampling() | self.logprob_sampling(),
            token_limit=self._token_limit(),
            num_choices=self.num_choices,
            form=requested_form(self),
            tools=tools,
            service_tier=self.tier,
            deadline_s=self.deadline_s,
            metadata=self.metadata or {},
            end_user=self.end_user,
            on_disconnect=self.on_disconnect,
            is_stored=self.store is not False,
        )

    def _token_limit(self) -> TokenLimit:
        if self.max_tokens is not None:
            return TokenLimit(self.max_tokens, "max_tokens")
        return TokenLimit(self.max_completion_tokens, "max_completion_tokens")


_REFUSALS: dict[str, tuple[tuple[Any, ...], str]] = {
    "modalities": ((None, [], ["text"]), "The models here answer in text only."),
    "audio": ((None,), "The models here answer in text only."),
    "functions": ((None, []), "'functions' is not supported; use 'tools'."),
    "function_call": ((None, "none", "auto"), "'function_call' is not supported; use 'tools'."),
    "web_search_options": ((None,), "There is no web search here."),
    "prompt_logprobs": (
        (None,),
        "'prompt_logprobs' is not supported here; 'echo' with 'logprobs' of text completions tells"
        " how likely the tokens of a prompt are.",
    ),
}
# With the value that all models here have.
_HINTS = {"reasoning_effort": "none", "verbosity": "medium"}
