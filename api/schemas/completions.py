"""The body of `POST /v1/completions`. Names and meanings are OpenAI's, extras vLLM's."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from api.generation import Generation, TokenLimit
from api.grammars.formats import requested_form
from api.prompts.prompt import PromptList, TextPrompt, TokenPrompt, listed_prompts
from api.schemas.chat import WaitingFields
from api.schemas.jobs import refuse_asked
from api.schemas.sampling import MAX_CHOICES, SamplingFields
from api.schemas.strict import IGNORE_UNKNOWN
from api.schemas.structured_outputs import StructuredOutputFields
from tasks.errors import InvalidRequest, UnsupportedParameter
from tasks.jobs import Dialect

PATH = "/v1/completions"
DEFAULT_MAX_TOKENS = 16  # OpenAI's
MAX_LOGPROBS = 5
MAX_PROMPT_TOKENS = 1_000_000
MAX_PROMPTS = 128  # times n


def _prompts(value: Any) -> list[TextPrompt | TokenPrompt]:
    """A prompt is a text or token ids; of both there may be lists."""
    if not isinstance(value, str | list) or not value:
        raise ValueError(_WRONG_PROMPT)
    listed = listed_prompts(value)
    if len(listed) > MAX_PROMPTS:
        raise ValueError(f"At most {MAX_PROMPTS} prompts a request.")
    prompts = [_one_prompt(prompt) for prompt in listed]
    if len({type(prompt) for prompt in prompts}) > 1:
        raise ValueError("Give texts or token ids, not both.")
    return prompts


def _one_prompt(value: Any) -> TextPrompt | TokenPrompt:
    if isinstance(value, str):
        return TextPrompt(value)
    if isinstance(value, list) and value:
        if len(value) > MAX_PROMPT_TOKENS:
            raise ValueError("The prompt has too many tokens.")
        is_id = all(type(item) is int and 0 <= item < 2**31 for item in value)
        if is_id:
            return TokenPrompt(value)
    raise ValueError(_WRONG_PROMPT)


_WRONG_PROMPT = "Give a text or a list of token ids, neither empty, or a list of such prompts."


_TokenIds = Annotated[
    list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1, max_length=MAX_PROMPT_TOKENS)
]
_Some = Field(min_length=1, max_length=MAX_PROMPTS)
_PromptForms = str | _TokenIds | Annotated[list[str], _Some] | Annotated[list[_TokenIds], _Some]
PromptField = Annotated[list[Any], BeforeValidator(_prompts, json_schema_input_type=_PromptForms)]


class CreateCompletion(SamplingFields, StructuredOutputFields, WaitingFields):
    """What a client may ask for."""

    model_config = IGNORE_UNKNOWN

    prompt: PromptField
    max_tokens: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None
    prompt_logprobs: int | None = None  # vLLM's; refused in words

    def generation(self) -> Generation:
        """In no dialect. Raises InvalidRequest and its like."""
        refuse_asked(self, _REFUSALS)
        self._refuse_combinations()
        logprobs = {} if self.logprobs is None else {"logprobs": self.logprobs}
        if self.echo and self.logprobs is not None:
            logprobs["prompt_logprobs"] = self.logprobs
        num_prompts, n = len(self.prompt), self.n or 1
        return Generation(
            dialect=Dialect.COMPLETION,
            path=PATH,
            model=self.model,
            prompt=self.prompt[0] if num_prompts == 1 else PromptList(self.prompt),
            prompt_param="prompt",
            sampling=self.sampling() | logprobs,
            token_limit=TokenLimit(self._max_tokens, "max_tokens"),
            num_choices=num_prompts * n,
            form=requested_form(self),
            service_tier=self.tier,
            deadline_s=self.deadline_s,
            metadata=self.metadata or {},
            end_user=self.end_user,
            on_disconnect=self.on_disconnect,
            is_stored=self.store is not False,
        )

    @property
    def _max_tokens(self) -> int:
        return DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens

    def _refuse_combinations(self) -> None:
        if self.best_of not in (None, self.n or 1):
            message = "'best_of' is not supported beyond 'n'."
            raise UnsupportedParameter(message, param="best_of")
        if len(self.prompt) * (self.n or 1) > MAX_PROMPTS:
            message = f"At most {MAX_PROMPTS} choices a request: prompts times 'n'."
            raise InvalidRequest(message, param="prompt")


_REFUSALS: dict[str, tuple[tuple[Any, ...], str]] = {
    "suffix": ((None, ""), "'suffix' is not supported: no model fills in."),
    "prompt_logprobs": (
        (None,),
        "'prompt_logprobs' is not supported; 'echo' with 'logprobs' tells how likely the tokens of"
        " a prompt are.",
    ),
}
