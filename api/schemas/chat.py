"""The body of `POST /v1/chat/completions`. Names and meanings are OpenAI's, extras vLLM's."""

from __future__ import annotations

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
from api.schemas.strict import IGNORE_UNKNOWN, Strict
from api.schemas.structured_outputs import StructuredOutputFields
from api.schemas.tools import ToolFields
from tasks.jobs import Dialect, OnDisconnect

PATH = "/v1/chat/completions"

# Tiers by OpenAI's names; the answer says the one really used.
Tier = Literal["auto", "default", "flex", "scale", "priority", "fast", "batch"]
_TIERS = {"fast": "priority", "scale": "auto"}


class StreamOptions(Strict):
    """What a stream is to hold beside its chunks."""

    model_config = IGNORE_UNKNOWN

    include_usage: bool | None = None
    include_obfuscation: bool | None = None  # taken, and without effect


class WaitingFields(Strict):
    """What all requests share whose clients wait for the answer."""

    model: ModelName
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    metadata: Metadata | None = None
    user: EndUser | None = None
    safety_identifier: EndUser | None = None
    prompt_cache_key: Annotated[str, Field(max_length=1_024)] | None = None
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
            raise ValueError("'stream_options' are for 'stream': true.")
        return self

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
    # What no model here can do; neutral values are fine.
    modalities: list[str] | None = None
    audio: Any = None
    functions: Any = None
    function_call: Any = None
    web_search_options: Any = None
    reasoning_effort: str | None = None
    verbosity: str | None = None
    prompt_logprobs: int | None = None  # vLLM's
    prediction: Any = None  # a hint for speed; the answer is the same without

    @model_validator(mode="after")
    def _one_limit(self) -> CreateChatCompletion:
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ValueError("Give either 'max_completion_tokens' or 'max_tokens'.")
        return self

    def generation(self) -> Generation:
        """In no dialect. Raises InvalidRequest and its like."""
        refuse_asked(self, _REFUSALS)
        return Generation(
            dialect=Dialect.CHAT,
            path=PATH,
            model=self.model,
            prompt=chat_prompt(list(self.messages), self),
            prompt_param="messages",
            sampling=self.sampling() | self.logprob_sampling(),
            token_limit=self._token_limit(),
            num_choices=self.num_choices,
            form=requested_form(self),
            tools=self.tool_use(),
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
    "modalities": ((None, ["text"]), "The models here answer in text only."),
    "audio": ((None,), "The models here answer in text only."),
    "functions": ((None, []), "'functions' is not supported; use 'tools'."),
    "function_call": ((None, "none", "auto"), "'function_call' is not supported; use 'tools'."),
    "web_search_options": ((None,), "There is no web search here."),
    "reasoning_effort": ((None, "none"), "This model has no reasoning effort to choose."),
    "prompt_logprobs": (
        (None,),
        "'prompt_logprobs' is not supported here; 'echo' with 'logprobs' of text completions tells"
        " how likely the tokens of a prompt are.",
    ),
    "verbosity": ((None, "medium"), "This model has no verbosity to choose."),
}
