"""From a validated request to a committed job: one transaction, then a hint that may get lost."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import orjson

from api import metrics
from api.grammars.checker import GrammarChecker
from api.grammars.formats import requested_grammar
from api.hints import HintSender
from api.limits import RateLimiter
from api.prompts.encoder import PromptEncoder
from api.prompts.registry import ModelRegistry, ServedModel
from api.prompts.template import Messages
from api.schemas.jobs import CreateJob
from api.settings import DEFAULT_DEADLINE_S, MAX_FAILS
from billing.pricing import worst_case_micros
from store.admission import Admitted, FrozenPrices, NewJob, admit
from store.catalog import ModelEntry
from store.pools import AsyncPool
from store.tenants import ApiKey
from tasks.errors import ContextLengthExceeded, InvalidPrompt, InvalidRequest, PermissionDenied
from tasks.ids import uuid7
from tasks.inference import Hint
from tasks.queues import ServiceTier, lane_for
from tasks.token_ids import pack_token_ids

_PATH = "/v1/jobs"  # part of the request's hash: another route may take the same body


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """One request to admit: as parsed, and as it was sent."""

    key: ApiKey
    request: CreateJob
    body: Mapping[str, Any]
    idempotency_key: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """Admits jobs. One an API process."""

    pool: AsyncPool
    registry: ModelRegistry
    encoder: PromptEncoder
    grammars: GrammarChecker
    hints: HintSender
    limiter: RateLimiter

    async def submit(self, submission: Submission) -> Admitted:
        """Commit the job, then send its hint. Raises ServiceError; then nothing was written."""
        began = time.monotonic()
        job = await self._new_job(submission)
        num_tokens = job.input_tokens + job.max_output_tokens
        await self.limiter.check(submission.key, num_tokens=num_tokens)
        admitted = await admit(self.pool, job)
        if admitted.is_new:
            self.hints.send(Hint(job.id, job.pool, job.service_tier, job.lane))
            metrics.jobs_admitted.labels(job.service_tier.value).inc()
        else:
            metrics.jobs_replayed.inc()
        metrics.admission_seconds.observe(time.monotonic() - began)
        return admitted

    async def _new_job(self, submission: Submission) -> NewJob:
        key, request = submission.key, submission.request
        request.refuse_unsupported()
        tier = _tier_for(key, request.service_tier)
        model = await self.registry.get(request.model)
        _check_token_ids(request, model)
        ids = await self._prompt_ids(request, model)
        max_output_tokens = _output_limit(request, model.entry, len(ids))
        _check_min_tokens(request, max_output_tokens)
        grammar = await self._grammar(key, request, model)
        prices = _frozen_prices(model.entry, tier)
        return NewJob(
            id=uuid7(),
            tenant_id=key.tenant_id,
            api_key_id=key.key_id,
            model=model.entry.name,
            model_requested=request.model,
            pool=model.entry.pool,
            service_tier=tier,
            lane=lane_for(key.tenant_id),
            deadline_s=request.deadline_s or DEFAULT_DEADLINE_S,
            max_fails=MAX_FAILS,
            input_tokens=len(ids),
            max_output_tokens=max_output_tokens,
            prices=prices,
            reserve_micros=worst_case_micros(
                input_tokens=len(ids), max_output_tokens=max_output_tokens, prices=prices
            ),
            request_hash=request_hash(_PATH, key.tenant_id, submission.body),
            request=submission.body,
            prompt_token_ids=pack_token_ids(ids),
            sampling=request.sampling() | {"max_tokens": max_output_tokens},
            grammar=grammar,
            end_user=request.user,
            idempotency_key=submission.idempotency_key,
            metadata=request.metadata or {},
        )

    async def _prompt_ids(self, request: CreateJob, model: ServedModel) -> list[int]:
        ids = await self.encoder.encode(
            model.codec, _prompt_of(request), context_length=model.entry.context_length
        )
        if not ids:  # a tokenizer may drop all that a text holds
            raise InvalidPrompt("The prompt holds no tokens.", param="prompt")
        return ids

    async def _grammar(self, key: ApiKey, request: CreateJob, model: ServedModel) -> str | None:
        """What every attempt compiles. Raises InvalidGrammar for what no worker could."""
        grammar = requested_grammar(request)
        if grammar is None:
            return None
        tokenizer = self.registry.tokenizer_file(model)
        await self.grammars.check(grammar, tokenizer=tokenizer, tenant_id=key.tenant_id)
        return grammar.text


def request_hash(path: str, tenant_id: UUID, body: Mapping[str, Any]) -> bytes:
    """Equal for two bodies that say the same, whatever the order of their keys."""
    document = {"path": path, "tenant": tenant_id.hex, "body": dict(body)}
    return hashlib.sha256(orjson.dumps(document, option=orjson.OPT_SORT_KEYS)).digest()


def _tier_for(key: ApiKey, asked: str) -> ServiceTier:
    if asked == "auto":
        return ServiceTier(key.default_tier)
    if asked not in key.tiers:
        message = f"The service tier '{asked}' is not part of your plan."
        raise PermissionDenied(message, param="service_tier")
    return ServiceTier(asked)


def _prompt_of(request: CreateJob) -> str | Messages:
    if request.messages is None:
        assert request.prompt is not None
        return request.prompt
    return [message.for_template() for message in request.messages]


def _check_token_ids(request: CreateJob, model: ServedModel) -> None:
    vocab_size = model.codec.vocab_size
    named = {
        "logit_bias": map(int, request.logit_bias or {}),
        "stop_token_ids": request.stop_token_ids or [],
    }
    for param, token_ids in named.items():
        if any(token_id >= vocab_size for token_id in token_ids):
            message = f"'{param}' names a token beyond the vocabulary of {vocab_size}."
            raise InvalidRequest(message, param=param)


def _output_limit(request: CreateJob, model: ModelEntry, input_tokens: int) -> int:
    """The most tokens to produce. Raises ContextLengthExceeded, InvalidRequest."""
    room = model.context_length - input_tokens
    asked = request.token_limit
    if asked is not None and asked > model.max_output_tokens:
        message = f"This model produces at most {model.max_output_tokens} tokens."
        raise InvalidRequest(message, param=request.token_limit_name)
    limit = min(model.max_output_tokens, room) if asked is None else asked
    if room < 1 or limit > room:
        raise ContextLengthExceeded(
            f"This model's context length is {model.context_length} tokens; your prompt has"
            f" {input_tokens}" + (f", and you asked for {asked} more." if asked else "."),
            param="prompt" if request.messages is None else "messages",
        )
    return limit


def _check_min_tokens(request: CreateJob, max_output_tokens: int) -> None:
    if (request.min_tokens or 0) > max_output_tokens:
        message = f"'min_tokens' is more than the {max_output_tokens} tokens to produce at most."
        raise InvalidRequest(message, param="min_tokens")


def _frozen_prices(model: ModelEntry, tier: ServiceTier) -> FrozenPrices:
    price = model.prices[tier.value]
    return FrozenPrices(
        version=model.price_version,
        input_micros=price.input_micros,
        cached_micros=price.cached_micros,
        output_micros=price.output_micros,
        currency=model.currency,
    )
