"""A claimed job as a request to the engine."""

from __future__ import annotations

from store.attempts import Claimed
from tasks.token_ids import unpack_token_ids
from workers.inference.engine.protocol import EngineRequest, SamplingParams
from workers.inference.runtime import RunningJob


def engine_request(job: RunningJob, now: float) -> EngineRequest:
    """Goes on after what earlier attempts produced. `now` is the monotonic clock's."""
    claimed = job.stream.claimed
    return EngineRequest(
        request_id=job.request_id,
        model=claimed.model,
        prompt_token_ids=unpack_token_ids(claimed.prompt_token_ids),
        sampling=_sampling(claimed),
        generated_token_ids=_generated(job),
        cache_salt=claimed.tenant_id.hex,
        deadline=now + claimed.remaining_s,
        grammar=claimed.grammar,
    )


def _generated(job: RunningJob) -> tuple[tuple[int, ...], ...]:
    """Of each choice. One that has ended is given too: its tokens end it again at once."""
    generated = tuple(tuple(choice.token_ids) for choice in job.stream.choices)
    return generated if any(generated) else ()


def _sampling(claimed: Claimed) -> SamplingParams:
    """The stored object has SamplingParams' field names; JSON made keys strings, tuples lists."""
    fields = dict(claimed.sampling)
    fields["logit_bias"] = {int(k): v for k, v in (fields.get("logit_bias") or {}).items()}
    for name in ("stop", "stop_token_ids"):
        fields[name] = tuple(fields.get(name) or ())
    fields["n"] = claimed.num_choices  # the one number by which output is stored, too
    return SamplingParams(**{"max_tokens": claimed.max_output_tokens, **fields})
