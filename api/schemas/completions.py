"""The body of `POST /v1/completions`. Names and meanings are OpenAI's, extras vLLM's."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from api.generation import Generation, TokenLimit
from api.grammars.formats import requested_form
from api.prompts.prompt import Prompt, TextPrompt, TokenPrompt
from api.schemas.chat import WaitingFields
from api.schemas.jobs import refuse_asked
from api.schemas.sampling import MAX_CHOICES, Count, SamplingFields
from api.schemas.strict import IGNORE_UNKNOWN
from api.schemas.structured_outputs import StructuredOutputFields
from tasks.errors import UnsupportedParameter
from tasks.jobs import Dialect

PATH = "/v1/completions"
DEFAULT_MAX_TOKENS = 16  # OpenAI's
MAX_LOGPROBS = 5
MAX_PROMPT_TOKENS = 1_000_000


def _one_prompt(value: Any) -> Any:
    """A prompt is a text or token ids; a list of one prompt is that prompt."""
    if isinstance(value, list) and value and not isinstance(value[0], int):
        if len(value) > 1:
            raise ValueError("One prompt a request; send the others in requests of their own.")
        value = value[0]
    if isinstance(value, str):
        return {"text": value}
    if isinstance(value, list) and value:
        if len(value) > MAX_PROMPT_TOKENS:
            raise ValueError("The prompt has too many tokens.")
        is_id = all(type(item) is int and 0 <= item < 2**31 for item in value)
        if is_id:
            return {"token_ids": value}
    raise ValueError("Give a text or a list of token ids, neither empty.")


_TokenIds = Annotated[
    list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1, max_length=MAX_PROMPT_TOKENS)
]
_One = Field(min_length=1, max_length=1)
_PromptForms = str | _TokenIds | Annotated[list[str], _One] | Annotated[list[_TokenIds], _One]
PromptField = Annotated[
    dict[str, Any], BeforeValidator(_one_prompt, json_schema_input_type=_PromptForms)
]


class CreateCompletion(SamplingFields, StructuredOutputFields, WaitingFields):
    """What a client may ask for."""

    model_config = IGNORE_UNKNOWN

    prompt: PromptField
    max_tokens: Count | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None

    def generation(self) -> Generation:
        """In no dialect. Raises InvalidRequest and its like."""
        refuse_asked(
            self, {"suffix": ((None, ""), "'suffix' is not supported: no model fills in.")}
        )
        self._refuse_combinations()
        logprobs = {} if self.logprobs is None else {"logprobs": self.logprobs}
        return Generation(
            dialect=Dialect.COMPLETION,
            path=PATH,
            model=self.model,
            prompt=self._prompt(),
            prompt_param="prompt",
            sampling=self.sampling() | logprobs,
            token_limit=TokenLimit(self.max_tokens or DEFAULT_MAX_TOKENS, "max_tokens"),
            num_choices=self.n or 1,
            form=requested_form(self),
            service_tier=self.tier,
            deadline_s=self.deadline_s,
            metadata=self.metadata or {},
            end_user=self.end_user,
            on_disconnect=self.on_disconnect,
            is_stored=self.store is not False,
        )

    def _prompt(self) -> Prompt:
        if "text" in self.prompt:
            return TextPrompt(self.prompt["text"])
        return TokenPrompt(self.prompt["token_ids"])

    def _refuse_combinations(self) -> None:
        if self.best_of not in (None, self.n or 1):
            message = "'best_of' is not supported beyond 'n'."
            raise UnsupportedParameter(message, param="best_of")
        if self.echo and "token_ids" in self.prompt:
            message = "'echo' is not supported for a prompt of token ids."
            raise UnsupportedParameter(message, param="echo")
        if self.echo and self.logprobs is not None:
            message = (
                "'echo' with 'logprobs' would need those of the prompt, which are not computed."
            )
            raise UnsupportedParameter(message, param="logprobs")
