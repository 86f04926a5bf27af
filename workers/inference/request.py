"""A claimed job as a request to the engine."""

from __future__ import annotations

from store.attempts import Claimed
from workers.inference.engine.protocol import EngineRequest, SamplingParams
from workers.inference.job_stream import JobStream
from workers.inference.prompts import PROMPT_LENGTHS, JobPrompt, prompt_token_ids
from workers.inference.runtime import RunningJob


def engine_requests(job: RunningJob, now: float) -> list[EngineRequest]:
    """One for each prompt, which goes on after what earlier attempts produced. `now` is the
    monotonic clock's.
    """
    stream, claimed = job.stream, job.stream.claimed
    asked = zip(job.request_ids, stream.prompts, prompt_token_ids(claimed), strict=True)
    return [
        EngineRequest(
            request_id=request_id,
            model=claimed.model,
            prompt_token_ids=token_ids,
            sampling=_sampling(claimed, prompt.num_choices),
            generated_token_ids=_generated(stream, prompt),
            num_scored=len(prompt.logprobs),
            cache_salt=claimed.tenant_id.hex,
            deadline=now + claimed.remaining_s,
            grammar=claimed.grammar,
        )
        for request_id, prompt, token_ids in asked
    ]


def _generated(stream: JobStream, prompt: JobPrompt) -> tuple[tuple[int, ...], ...]:
    """Of each choice. One that has ended is given too: its tokens end it again at once."""
    own = stream.choices[prompt.first_choice : prompt.first_choice + prompt.num_choices]
    generated = tuple(tuple(choice.token_ids) for choice in own)
    return generated if any(generated) else ()


def _sampling(claimed: Claimed, num_choices: int) -> SamplingParams:
    """The stored object has SamplingParams' field names; JSON made keys strings, tuples lists."""
    fields = dict(claimed.sampling)
    fields.pop(PROMPT_LENGTHS, None)
    fields["logit_bias"] = {int(k): v for k, v in (fields.get("logit_bias") or {}).items()}
    for name in ("stop", "stop_token_ids"):
        fields[name] = tuple(fields.get(name) or ())
    fields["n"] = num_choices
    return SamplingParams(**{"max_tokens": claimed.max_output_tokens, **fields})
