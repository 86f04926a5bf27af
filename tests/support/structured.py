"""Generation under a grammar without a model: the engine's requests and sampler, random logits."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import Tokenizer

from tests.support.tiny_models import EOS_TOKEN_ID
from workers.inference.engine.detokenizer import TokenizerDecoder
from workers.inference.engine.executor import SampledToken
from workers.inference.engine.grammar import GrammarCompiler
from workers.inference.engine.protocol import EngineRequest, SamplingParams
from workers.inference.engine.request import Request
from workers.inference.engine.sampler import sample

_CONTEXT_LENGTH = 10_000
# Random text hardly ever closes a string; these are what closes one, or goes on behind it.
_LIKELY = '"}],:'


def json_grammar(schema: Any) -> str:
    """The serialised grammar of a JSON schema."""
    return json.dumps({"grammars": [{"json_schema": schema}]})


def lark_grammar(lark: str) -> str:
    """The serialised form of a Lark grammar."""
    return json.dumps({"grammars": [{"lark_grammar": lark}]})


class RandomWriter:
    """Writes random text under grammars, with one tokenizer."""

    def __init__(self, tokenizer: Tokenizer, *, vocab_size: int, eos_token_id: int = EOS_TOKEN_ID):
        self.vocab_size = vocab_size
        self._tokenizer = tokenizer
        self._eos_token_ids = frozenset({eos_token_id})
        self._compiler = GrammarCompiler(tokenizer, vocab_size, self._eos_token_ids)
        ids = (tokenizer.token_to_id(character) for character in _LIKELY)
        self._likely = [eos_token_id, *(i for i in ids if i is not None)]

    def request(self, grammar: str, **sampling: Any) -> Request:
        """A request at its start, or behind `generated_token_ids`. Raises as the compiler does."""
        generated = sampling.pop("generated_token_ids", None)
        settings: dict[str, Any] = {"max_tokens": 300, "temperature": 1.0, "seed": 0} | sampling
        return Request(
            EngineRequest(
                request_id="r",
                model="m",
                prompt_token_ids=[1],
                sampling=SamplingParams(**settings),
                generated_token_ids=() if generated is None else (generated,),
                grammar=grammar,
            ),
            decoder=TokenizerDecoder(self._tokenizer),
            eos_token_ids=self._eos_token_ids,
            context_length=_CONTEXT_LENGTH,
            seed=settings["seed"],
            grammar=self._compiler.compile(grammar),
        )

    def write(self, requests: Sequence[Request], *, seed: int = 0) -> list[str]:
        """Run all to their ends as one batch; their texts. Fails at any error."""
        generator = torch.Generator().manual_seed(seed)
        texts = [""] * len(requests)
        while live := [i for i, request in enumerate(requests) if not request.is_finished]:
            logits = 2 * torch.randn(len(live), self.vocab_size, generator=generator)
            logits[:, self._likely] += 3
            results = sample(logits, [requests[i] for i in live])
            for i, result in zip(live, results, strict=True):
                assert isinstance(result, SampledToken), result
                texts[i] += requests[i].append(result).text
        return texts
