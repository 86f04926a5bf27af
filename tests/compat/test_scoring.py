"""What evaluation harnesses ask for: how likely a model holds a continuation to be.

The requests are those of lm-evaluation-harness's `local-completions` (0.4.13), and so is what is
made of their answers; right is what transformers makes of the same weights.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import httpx
import openai
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from cli.stack.files import ROOT
from tests.compat.requests import MODEL
from tests.support.member import Tenant

FOLDER = ROOT / "models/demo" / MODEL
# The last ends as a whole answer does: the model is sure to end it.
PAIRS = [
    ("What is a service tier?", " A service tier says how urgent a job is."),
    ("What is a service tier?", " a zebra"),
    ("three plus four is", " seven"),
    ("Zwölf Euro, 12 €, are", " much — „viel“ €"),
    ("The job is", " cancelled.\n\n\nThe job"),
]
# Of the sum over a continuation; the weights are bf16, sums are float32 on both sides.
NEAR = 2e-3
Scored = tuple[float, bool]


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    loaded: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(FOLDER)
    return loaded


@cache
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()


def encoded() -> list[tuple[list[int], list[int]]]:
    def ids(text: str) -> list[int]:
        found: list[int] = tokenizer()(text, add_special_tokens=False)["input_ids"]
        return found

    return [(ids(context), ids(context + more)[len(ids(context)) :]) for context, more in PAIRS]


def own_scores() -> list[Scored]:
    """By transformers: the sum of log-probabilities, and whether each is the likeliest."""
    found = []
    for context, more in encoded():
        with torch.inference_mode():
            logits = model()(torch.tensor([context + more])).logits[0].float()
        rows = logits.log_softmax(-1)[len(context) - 1 : -1]
        of_tokens = rows.gather(1, torch.tensor(more)[:, None])[:, 0]
        found.append((float(of_tokens.sum()), bool((rows.argmax(-1) == torch.tensor(more)).all())))
    return found


def asked(prompt: Any) -> dict[str, Any]:
    settings = {"temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True}
    return {"model": MODEL, "prompt": prompt, **settings}


def scored(answer: dict[str, Any], context_lengths: Sequence[int]) -> list[Scored]:
    """The last entry is of the token that was drawn, whatever it is."""
    found = []
    choices = sorted(answer["choices"], key=lambda choice: int(choice["index"]))
    for choice, begin in zip(choices, context_lengths, strict=True):
        values = choice["logprobs"]["token_logprobs"][begin:-1]
        best = [max(top.values()) for top in choice["logprobs"]["top_logprobs"][begin:-1]]
        found.append((sum(values), values == best))
    return found


def assert_own(found: Sequence[Scored]) -> None:
    for (value, is_greedy), (expected, is_expected_greedy) in zip(found, own_scores(), strict=True):
        assert value == pytest.approx(expected, abs=NEAR)
        assert is_greedy == is_expected_greedy


@pytest.fixture(scope="module")
def http(base_url: str, tenant: Tenant) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=base_url, headers=tenant.headers, timeout=60) as http:
        yield http


@pytest.fixture(scope="module")
def lengths() -> list[int]:
    return [len(context) for context, _ in encoded()]


def test_lists_of_token_ids_score_as_transformers_does(
    http: httpx.Client, lengths: list[int]
) -> None:
    prompts = [context + more for context, more in encoded()]

    answer = http.post("/completions", json=asked(prompts)).raise_for_status().json()

    assert_own(scored(answer, lengths))
    assert [choice["index"] for choice in answer["choices"]] == list(range(len(PAIRS)))
    assert answer["usage"]["prompt_tokens"] == sum(map(len, prompts))
    assert answer["usage"]["completion_tokens"] == len(PAIRS)
    for choice, prompt in zip(answer["choices"], prompts, strict=True):
        listed = choice["logprobs"]
        assert {len(entries) for entries in listed.values()} == {len(prompt) + 1}
        assert choice["text"].startswith(tokenizer().decode(prompt))
        assert listed["token_logprobs"][0] is listed["top_logprobs"][0] is None


def test_texts_score_the_same_alone_and_in_lists(http: httpx.Client, lengths: list[int]) -> None:
    texts = [context + more for context, more in PAIRS]

    together = http.post("/completions", json=asked(texts)).raise_for_status().json()
    alone = http.post("/completions", json=asked(texts[0])).raise_for_status().json()

    assert_own(scored(together, lengths))
    assert alone["choices"] == together["choices"][:1]
    assert all(c["text"].startswith(t) for c, t in zip(together["choices"], texts, strict=True))


def test_requests_side_by_side_score_the_same(tenant: Tenant, base_url: str) -> None:
    async def ask() -> list[Any]:
        async with httpx.AsyncClient(
            base_url=base_url, headers=tenant.headers, timeout=60
        ) as client:
            return await asyncio.gather(
                *(
                    client.post("/completions", json=asked([context + more]))
                    for context, more in encoded()
                )
            )

    answers = [answer.raise_for_status().json() for answer in asyncio.run(ask())]

    lengths = [len(context) for context, _ in encoded()]
    assert_own([s for a, n in zip(answers, lengths, strict=True) for s in scored(a, [n])])


@pytest.mark.parametrize("max_tokens", [0, 3])
def test_a_stream_tells_what_the_whole_does(client: openai.OpenAI, max_tokens: int) -> None:
    texts = [context + more for context, more in PAIRS[:3]]
    fields: dict[str, Any] = asked(texts) | {"n": 2, "max_tokens": max_tokens, "logprobs": 2}

    whole = client.completions.create(**fields)
    parts: dict[int, dict[str, Any]] = {}
    for chunk in client.completions.create(**fields, stream=True):
        for choice in chunk.choices:
            part = parts.setdefault(choice.index, {"text": "", "reason": None})
            part["text"] += choice.text
            part["reason"] = choice.finish_reason or part["reason"]
            if choice.logprobs:
                for name, entries in choice.logprobs.to_dict().items():
                    part.setdefault(name, []).extend(entries)

    assert len(whole.choices) == len(parts) == 6
    for choice in whole.choices:
        shown = {"text": choice.text, "reason": choice.finish_reason}
        assert choice.logprobs is not None
        assert json.loads(json.dumps(parts[choice.index])) == shown | choice.logprobs.to_dict()
    assert whole.usage is not None
    assert whole.usage.completion_tokens <= 6 * max_tokens


def test_no_tokens_at_all_give_an_empty_text(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt="A service", max_tokens=0)

    [choice] = answer.choices
    assert (choice.text, choice.finish_reason) == ("", "length")
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens > 0, answer.usage.completion_tokens) == (True, 0)
