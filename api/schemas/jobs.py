"""The body of `POST /v1/jobs`. Strict: no unknown fields, no conversions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from api.schemas.strict import Strict
from api.schemas.structured_outputs import StructuredOutputFields
from api.settings import MAX_DEADLINE_S
from tasks.errors import UnsupportedParameter

INT64_MAX = 2**63 - 1

Penalty = Annotated[float, Field(ge=-2.0, le=2.0)]
TokenLimit = Annotated[int, Field(ge=1, le=2**31 - 1)]
StopString = Annotated[str, Field(min_length=1, max_length=64)]
Bias = Annotated[float, Field(ge=-100.0, le=100.0)]
TokenId = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]
StopTokenId = Annotated[int, Field(ge=0, le=10**9 - 1)]
MetadataKey = Annotated[str, Field(max_length=64)]
MetadataValue = Annotated[str, Field(max_length=512)]


# One of two forms becomes the other before validation: an error in a union would name both.
def _text_as_parts(value: Any) -> Any:
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


def _text_as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class TextPart(Strict):
    """A piece of a message's content."""

    type: Literal["text"]
    text: str


class Message(Strict):
    """One message of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        list[TextPart], BeforeValidator(_text_as_parts), Field(min_length=1, max_length=256)
    ]
    name: Annotated[str, Field(min_length=1, max_length=64)] | None = None

    def for_template(self) -> dict[str, str]:
        """As chat templates expect it: the content is one text."""
        content = "\n".join(part.text for part in self.content)
        message = {"role": self.role, "content": content}
        return message | {"name": self.name} if self.name else message


class SamplingFields(Strict):
    """How to choose tokens. Names and ranges are OpenAI's, and vLLM's where OpenAI has none."""

    temperature: Annotated[float, Field(ge=0.0, le=2.0)] | None = None
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    top_k: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    min_p: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Field(gt=0.0, le=10.0)] | None = None
    logit_bias: Annotated[dict[TokenId, Bias], Field(max_length=300)] | None = None
    seed: Annotated[int, Field(ge=-INT64_MAX - 1, le=INT64_MAX)] | None = None
    stop: (
        Annotated[list[StopString], BeforeValidator(_text_as_list), Field(max_length=4)] | None
    ) = None
    stop_token_ids: Annotated[list[StopTokenId], Field(max_length=64)] | None = None
    min_tokens: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    ignore_eos: bool | None = None

    def sampling(self) -> dict[str, Any]:
        """The fields that were given, by the engine's names."""
        return self.model_dump(include=set(SamplingFields.model_fields), exclude_none=True)


class LaterFields(Strict):
    """OpenAI's fields that only their neutral value is supported of yet."""

    n: int | None = None
    logprobs: Any = None
    top_logprobs: Any = None
    tools: Any = None
    tool_choice: Any = None
    stream: bool | None = None

    def refuse_unsupported(self) -> None:
        """Raise UnsupportedParameter for a field that asks for something."""
        for name, neutral in _NEUTRAL.items():
            if getattr(self, name) not in neutral:
                raise UnsupportedParameter(_UNSUPPORTED.get(name, _LATER % name), param=name)


_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (None, 1),
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "stream": (None, False),
}
_LATER = "'%s' is not supported yet."
_UNSUPPORTED = {
    "n": "Only n=1 is supported yet.",
    "stream": "Jobs are not streamed by this call; read the events at the job's events_url.",
}


class CreateJob(SamplingFields, StructuredOutputFields, LaterFields):
    """What a client may ask for."""

    model: Annotated[str, Field(min_length=1, max_length=128)]
    messages: Annotated[list[Message], Field(min_length=1, max_length=2_048)] | None = None
    prompt: Annotated[str, Field(min_length=1)] | None = None
    max_tokens: TokenLimit | None = None
    max_completion_tokens: TokenLimit | None = None
    max_output_tokens: TokenLimit | None = None
    metadata: Annotated[dict[MetadataKey, MetadataValue], Field(max_length=16)] | None = None
    user: Annotated[str, Field(max_length=256)] | None = None
    service_tier: Literal["auto", "default", "flex", "priority", "batch"] = "auto"
    deadline_s: Annotated[float, Field(ge=1.0, le=MAX_DEADLINE_S)] | None = None

    @field_validator("service_tier", mode="before")
    @classmethod
    def _null_is_auto(cls, value: Any) -> Any:
        return "auto" if value is None else value

    @model_validator(mode="after")
    def _one_prompt_and_one_limit(self) -> CreateJob:
        if (self.messages is None) == (self.prompt is None):
            raise ValueError("Give either 'messages' or 'prompt'.")
        if len(self._limits()) > 1:
            raise ValueError(f"Give one of {', '.join(_LIMITS)}.")
        return self

    @property
    def token_limit(self) -> int | None:
        """The most tokens to produce, under whichever name it was given."""
        return next(iter(self._limits().values()), None)

    @property
    def token_limit_name(self) -> str:
        """The name it was given under, for error messages."""
        return next(iter(self._limits()), _LIMITS[0])

    def _limits(self) -> dict[str, int]:
        values = {name: getattr(self, name) for name in _LIMITS}
        return {name: value for name, value in values.items() if value is not None}


_LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
