"""What the engine is asked for on behalf of a claimed job."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tasks.ids import uuid7
from tasks.token_ids import pack_token_ids
from tests.unit.worker.test_job_stream import new_stream, output
from workers.inference.engine.protocol import EngineRequest, SamplingParams
from workers.inference.request import engine_request
from workers.inference.runtime import RunningJob


def _job(*, num_choices: int = 1, **fields: Any) -> RunningJob:
    stream = new_stream(num_choices=num_choices)
    prompt = pack_token_ids([5, 6])
    stream.claimed = replace(stream.claimed, prompt_token_ids=prompt, remaining_s=60.0, **fields)
    return RunningJob(stream, uuid7())


def test_a_request_says_all_that_its_job_says() -> None:
    stored = {"temperature": 0.5, "logit_bias": {"7": -1.5}, "stop": ["x"], "stop_token_ids": [3]}
    job = _job(num_choices=2, sampling=stored, grammar="g", attempt=3)
    job.stream.add_output(output("b", 9, index=1))
    claimed = job.stream.claimed

    assert engine_request(job, 1_000.0) == EngineRequest(
        request_id=f"{claimed.job_id.hex}.3",
        model="stub",
        prompt_token_ids=[5, 6],
        sampling=SamplingParams(
            max_tokens=100,
            temperature=0.5,
            logit_bias={7: -1.5},
            stop=("x",),
            stop_token_ids=(3,),
            n=2,
        ),
        generated_token_ids=((), (9,)),
        cache_salt=claimed.tenant_id.hex,
        deadline=1_060.0,
        grammar="g",
    )


def test_a_job_that_has_produced_nothing_generates_from_its_prompt() -> None:
    request = engine_request(_job(num_choices=2), 0.0)

    assert request.generated_token_ids == ()
    assert request.sampling == SamplingParams(max_tokens=100, n=2)


def test_a_stored_null_means_none() -> None:
    stored = {"logit_bias": None, "stop": None, "max_tokens": 7}

    sampling = engine_request(_job(sampling=stored), 0.0).sampling

    assert (sampling.logit_bias, sampling.stop, sampling.max_tokens) == ({}, (), 7)
