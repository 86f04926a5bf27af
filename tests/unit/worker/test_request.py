"""What the engine is asked for on behalf of a claimed job."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tasks.ids import uuid7
from tasks.token_ids import pack_token_ids
from tests.unit.worker.test_job_stream import new_stream, output
from workers.inference.engine.protocol import EngineRequest, SamplingParams, TokenLogprobs
from workers.inference.job_stream import JobStream
from workers.inference.request import engine_requests
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

    [request] = engine_requests(job, 1_000.0)
    assert request == EngineRequest(
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
    [request] = engine_requests(_job(num_choices=2), 0.0)

    assert request.generated_token_ids == ()
    assert request.sampling == SamplingParams(max_tokens=100, n=2)


def test_a_stored_null_means_none() -> None:
    stored = {"logit_bias": None, "stop": None, "max_tokens": 7}

    [request] = engine_requests(_job(sampling=stored), 0.0)
    sampling = request.sampling

    assert (sampling.logit_bias, sampling.stop, sampling.max_tokens) == ({}, (), 7)


def test_each_prompt_of_a_list_is_a_request_of_its_own() -> None:
    stored = {"prompt_lengths": [1, 2], "prompt_logprobs": 1, "seed": 5}
    stream = new_stream(num_choices=4)
    claimed = replace(
        stream.claimed, prompt_token_ids=pack_token_ids([5, 6, 7]), sampling=stored, attempt=3
    )
    job = RunningJob(JobStream(claimed, history=(), choices=stream.choices), uuid7())
    job.stream.add_output(output("b", 9, index=1), 1)
    job.stream.add_output(output("", prompt_logprobs=(TokenLogprobs(6, None),)), 1)

    first, second = engine_requests(job, 0.0)

    assert [first.request_id, second.request_id] == job.request_ids
    assert (first.prompt_token_ids, second.prompt_token_ids) == ([5], [6, 7])
    assert (first.generated_token_ids, second.generated_token_ids) == ((), ((), (9,)))
    assert (first.num_scored, second.num_scored) == (0, 1)
    sampling = SamplingParams(max_tokens=100, n=2, seed=5, prompt_logprobs=1)
    assert first.sampling == second.sampling == sampling
