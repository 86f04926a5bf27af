"""How to choose tokens. Names and ranges are OpenAI's, and vLLM's where OpenAI has none."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from api.schemas.strict import Strict, at_most, mistake

INT64_MAX = 2**63 - 1
MAX_CHOICES = 8
MAX_TOP_LOGPROBS = 20
MAX_BIASES = 300
MAX_STOP_CHARS = 64

# What vLLM takes for "none": the engine's default is the same.
_OFF = {"top_k": -1, "seed": -1}
# OpenAI's lower end, of which the likeliest token is left. The engine's range is open there.
_LEAST_TOP_P = 1e-6

Penalty = Annotated[float, Field(ge=-2.0, le=2.0)]
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]
Bias = Annotated[float, Field(ge=-100.0, le=100.0)]
TokenId = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]
StopTokenId = Annotated[int, Field(ge=0, le=10**9 - 1)]


_StopStrings = Annotated[list[StopString], Field(max_length=4)]


# One of two forms becomes the other before validation: an error in a union would name both.
def _text_as_list(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if not 1 <= len(value) <= MAX_STOP_CHARS:
        raise mistake(f"A text to stop at has 1 to {MAX_STOP_CHARS} characters.")
    return [value]


class SamplingFields(Strict):
    """Fields that the engine's SamplingParams has by the same names."""

    temperature: Annotated[float, Field(ge=0.0, le=2.0)] | None = None
    top_p: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=2**31 - 1)] | None = None
    min_p: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Field(ge=0.001, le=10.0)] | None = None
    logit_bias: (
        Annotated[dict[TokenId, Bias], at_most(MAX_BIASES), Field(max_length=MAX_BIASES)] | None
    ) = None
    seed: Annotated[int, Field(ge=-INT64_MAX - 1, le=INT64_MAX)] | None = None
    stop: (
        Annotated[
            list[StopString],
            BeforeValidator(_text_as_list, json_schema_input_type=StopString | _StopStrings),
            Field(max_length=4),
        ]
        | None
    ) = None
    stop_token_ids: Annotated[list[StopTokenId], Field(max_length=64)] | None = None
    min_tokens: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    ignore_eos: bool | None = None

    def sampling(self) -> dict[str, Any]:
        """The fields that were given, by the engine's names."""
        given = self.model_dump(include=set(SamplingFields.model_fields), exclude_none=True)
        sampling = {name: value for name, value in given.items() if value != _OFF.get(name)}
        if "top_p" in sampling:
            sampling["top_p"] = max(_LEAST_TOP_P, sampling["top_p"])
        return sampling


class ChoiceFields(Strict):
    """How many answers, and how likely their tokens were."""

    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None

    @model_validator(mode="after")
    def _top_needs_logprobs(self) -> ChoiceFields:
        if self.top_logprobs and not self.logprobs:
            raise mistake("'top_logprobs' needs 'logprobs'.", "top_logprobs")
        return self

    @property
    def num_choices(self) -> int:
        """Answers to generate."""
        return self.n or 1

    def logprob_sampling(self) -> dict[str, Any]:
        """By the engine's name: the number of likely tokens to report beside each chosen one."""
        return {"logprobs": self.top_logprobs or 0} if self.logprobs else {}
