"""From a validated request to a committed job: one transaction, then a hint that may get lost."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any
from uuid import UUID

import orjson

from api import metrics
from api.errors import status_of
from api.generation import Generation
from api.grammars.checker import GrammarChecker, Wait, just_wait
from api.grammars.formats import Grammar
from api.hints import HintSender
from api.job_limits import check_is_served, check_token_ids, output_limit, policy_for, tier_for
from api.limits.answers import rate_headers
from api.limits.limiter import RateLimiter
from api.prompts.encoder import PromptEncoder
from api.prompts.prompt import ChatPrompt, Prompt
from api.prompts.registry import ModelRegistry, ServedModel
from api.prompts.truncation import shorten
from api.settings import DEFAULT_DEADLINE_S, MAX_FAILS
from api.tools.formats import ToolFormat
from api.tools.grammar import tool_grammar
from api.tools.request import ToolMode
from billing.pricing import worst_case_micros
from store.admission import (
    Admitted,
    FrozenPrices,
    NewJob,
    admit,
    find_first_try,
    find_first_use,
)
from store.catalog import ModelEntry
from store.pools import AsyncPool
from store.tenants import ApiKey
from tasks.errors import (
    ContextLengthExceeded,
    InvalidPrompt,
    RateLimitExceeded,
    ServiceError,
    UnsupportedParameter,
)
from tasks.ids import uuid7
from tasks.inference import Hint
from tasks.limits import Standing
from tasks.queues import ServiceTier, lane_for
from tasks.token_ids import pack_token_ids


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """One request to admit: in no dialect, its hash as it was sent, and what of it is stored."""

    key: ApiKey
    generation: Generation
    request_hash: bytes
    known: Mapping[str, Any]
    idempotency_key: str | None = None
    is_retry: bool = False  # the client's library says so, and gave no idempotency key
    batch_id: UUID | None = None
    wait: Wait = just_wait  # for what takes long before anything is written


@dataclass(frozen=True, slots=True)
class Accepted(Admitted):
    """The job that stands for a request, and how its tenant's rate limits stand then."""

    standing: Standing | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """Admits jobs. One a process."""

    pool: AsyncPool
    registry: ModelRegistry
    encoder: PromptEncoder
    grammars: GrammarChecker
    hints: HintSender
    limiter: RateLimiter

    async def submit(self, submission: Submission) -> Accepted:
        """Commit the job, then send its hint. Raises ServiceError; then nothing was written."""
        began = time.monotonic()
        job = await self._new_job(submission)
        accepted = await self._accept(job, submission)
        if accepted.is_new:
            self.hints.send(Hint(job.id, job.pool, job.service_tier, job.lane))
            metrics.jobs_admitted.labels(job.service_tier.value).inc()
        else:
            metrics.jobs_replayed.inc()
        metrics.admission_seconds.observe(time.monotonic() - began)
        return accepted

    async def count_tokens(self, key: ApiKey, generation: Generation) -> list[int]:
        """How many tokens each prompt has. Raises ServiceError as `submit` would."""
        model = await self.registry.get(generation.model)
        return [len(ids) for ids in await self._prompt_ids(key, generation, model)]

    async def _accept(self, job: NewJob, submission: Submission) -> Accepted:
        """The new job, or the one that an earlier try of the request made, which costs nothing."""
        key = submission.key
        if submission.is_retry and (first := await self._first_try(job, key)) is not None:
            return Accepted(first, standing=await self.limiter.look(key))
        try:
            standing = await self.limiter.take(key, job.max_tokens)
        except RateLimitExceeded as refusal:
            return await self._repeated(job, key, refusal)
        try:
            admitted = await admit(self.pool, job)
        except ServiceError as error:
            error.headers |= rate_headers(await self.limiter.give_back(key, job.max_tokens))
            raise
        if not admitted.is_new:
            standing = await self.limiter.give_back(key, job.max_tokens)
        return Accepted(admitted.job_id, admitted.row, standing)

    async def _first_try(self, job: NewJob, key: ApiKey) -> UUID | None:
        """The job of a retry without an idempotency key.

        None if what is tried again was refused: an older job is that of another, equal request.
        """
        first = await find_first_try(self.pool, job)
        if first is None:
            return None
        refused = await self.limiter.last_refusal(key, job.request_hash)
        return first if refused is None or first > refused else None  # ids are in order of time

    async def _repeated(self, job: NewJob, key: ApiKey, refusal: RateLimitExceeded) -> Accepted:
        """The job of a repeated idempotency key; any other request stays refused."""
        if job.idempotency_key is not None:
            first = await find_first_use(self.pool, job)
            if first is not None:
                return Accepted(first.job_id, standing=await self.limiter.look(key))
        elif refusal.retryable:
            await self.limiter.note_refusal(key, job.request_hash, job.id)
        metrics.rate_limited.labels(status_of(refusal)[1]).inc()
        raise refusal

    async def _new_job(self, submission: Submission) -> NewJob:
        key, generation = submission.key, submission.generation
        tier = tier_for(key, generation.service_tier)
        model = await self.registry.get(generation.model)
        check_is_served(model.entry)
        check_token_ids(generation.sampling, model.codec.vocab_size)
        tool_format = _tool_format(generation, model)
        ids = await self._prompt_ids(key, generation, model)
        lengths = [len(of_prompt) for of_prompt in ids]
        max_output_tokens = output_limit(generation, model.entry, lengths)
        grammar = await self._grammar(submission, model)
        prices = _frozen_prices(model.entry, tier)
        return NewJob(
            id=uuid7(),
            tenant_id=key.tenant_id,
            api_key_id=key.key_id,
            model=model.entry.name,
            model_requested=generation.model,
            pool=model.entry.pool,
            service_tier=tier,
            lane=lane_for(key.tenant_id),
            deadline_s=generation.deadline_s or DEFAULT_DEADLINE_S,
            max_fails=MAX_FAILS,
            input_tokens=sum(lengths),
            max_output_tokens=max_output_tokens,
            num_choices=generation.num_choices,
            prices=prices,
            reserve_micros=worst_case_micros(
                input_tokens=sum(lengths),
                max_output_tokens=max_output_tokens * generation.num_choices,
                prices=prices,
            ),
            request_hash=submission.request_hash,
            request=submission.known,
            prompt_token_ids=pack_token_ids(chain.from_iterable(ids)),
            sampling=_sampling(generation, max_output_tokens, lengths),
            grammar=grammar,
            end_user=generation.end_user,
            idempotency_key=submission.idempotency_key,
            metadata=generation.metadata,
            dialect=generation.dialect.value,
            tool_format=tool_format.name if tool_format else None,
            is_background=generation.is_background,
            on_disconnect=policy_for(key, generation).value,
            batch_id=submission.batch_id,
            is_stored=generation.is_stored,
        )

    async def _prompt_ids(
        self, key: ApiKey, generation: Generation, model: ServedModel
    ) -> list[list[int]]:
        prompt = generation.prompt
        if generation.truncates_prompt and isinstance(prompt, ChatPrompt):
            prompt = await self._shortened(prompt, key, generation, model)
        ids = await self._encode(prompt, key, generation, model)
        if not all(ids):  # a tokenizer may drop all that a text holds
            raise InvalidPrompt("The prompt holds no tokens.", param=generation.prompt_param)
        return ids

    async def _encode(
        self, prompt: Prompt, key: ApiKey, generation: Generation, model: ServedModel
    ) -> list[list[int]]:
        return await self.encoder.encode(
            model.codec,
            prompt,
            tenant_id=key.tenant_id,
            context_length=model.entry.context_length,
            param=generation.prompt_param,
        )

    async def _shortened(
        self, chat: ChatPrompt, key: ApiKey, generation: Generation, model: ServedModel
    ) -> ChatPrompt:
        wanted = generation.token_limit.value or 1

        async def fits(shorter: ChatPrompt) -> bool:
            try:
                [ids] = await self._encode(shorter, key, generation, model)
            except ContextLengthExceeded:
                return False
            return len(ids) + wanted <= model.entry.context_length

        return await shorten(chat, fits, partial(self.encoder.run, tenant_id=key.tenant_id))

    async def _grammar(self, submission: Submission, model: ServedModel) -> str | None:
        """What every attempt compiles. Raises InvalidGrammar for what no worker could."""
        grammar = _grammar_of(submission.generation, model)
        if grammar is None:
            return None
        await self.grammars.check(
            grammar,
            tokenizer=self.registry.tokenizer_file(model),
            tenant_id=submission.key.tenant_id,
            wait=submission.wait,
        )
        return grammar.text


def request_hash(path: str, tenant_id: UUID, body: Mapping[str, Any]) -> bytes:
    """Equal for two bodies that say the same, whatever the order of their keys."""
    document = {"path": path, "tenant": tenant_id.hex, "body": dict(body)}
    return hashlib.sha256(orjson.dumps(document, option=orjson.OPT_SORT_KEYS)).digest()


def _grammar_of(generation: Generation, model: ServedModel) -> Grammar | None:
    """Of the answer alone, or of an answer and calls."""
    tools, form = generation.tools, generation.form
    if tools is None or (form is None and not tools.needs_grammar):
        return form
    if form is not None and form.schema is None:
        message = "Together with tools the answer's form can only be JSON."
        raise UnsupportedParameter(message, param=form.param)
    if form is not None and tools.mode is ToolMode.REQUIRED and form.is_of_all:
        message = "Where a tool has to be called, 'structured_outputs' can't be kept to."
        raise UnsupportedParameter(message, param=form.param)
    format_ = _tool_format(generation, model)
    assert format_ is not None
    return tool_grammar(
        tools,
        format_,
        special_tokens=model.codec.special_tokens,
        answer_schema=form.schema if form else None,
    )


def _tool_format(generation: Generation, model: ServedModel) -> ToolFormat | None:
    """How the model writes calls, if it may call something. Raises UnsupportedParameter."""
    if generation.tools is None:
        return None
    if model.codec.tool_format is None:
        message = f"The model '{model.entry.name}' can't call tools."
        raise UnsupportedParameter(message, param=generation.tools.param)
    return model.codec.tool_format


def _sampling(
    generation: Generation, max_output_tokens: int, prompt_lengths: list[int]
) -> dict[str, Any]:
    sampling = dict(generation.sampling) | {"max_tokens": max_output_tokens}
    if len(prompt_lengths) > 1:  # their tokens stand one after another
        sampling["prompt_lengths"] = prompt_lengths
    if generation.tools is not None:  # the marks around a call may be special tokens
        sampling["skip_special_tokens"] = False
    return sampling


def _frozen_prices(model: ModelEntry, tier: ServiceTier) -> FrozenPrices:
    price = model.prices[tier.value]
    return FrozenPrices(
        version=model.price_version,
        input_micros=price.input_micros,
        cached_micros=price.cached_micros,
        output_micros=price.output_micros,
        currency=model.currency,
    )
