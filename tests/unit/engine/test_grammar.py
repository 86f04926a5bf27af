"""Grammars: what may follow, against brute force; what is refused; how the sampler applies them."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, models

from tests.support.structured import RandomWriter, json_grammar, lark_grammar
from tests.support.tiny_models import EOS_TOKEN_ID, byte_level_tokenizer
from tests.unit.engine.requests import running_request
from workers.inference.engine.errors import EngineError
from workers.inference.engine.executor import SampledToken
from workers.inference.engine.grammar import (
    MAX_GRAMMAR_BYTES,
    GrammarCompiler,
    TokenGrammar,
    allowed_tokens,
)
from workers.inference.engine.protocol import FinishReason
from workers.inference.engine.request import Request
from workers.inference.engine.sampler import sample
from workers.inference.engine.sampling.masks import mask

TOKENIZER = byte_level_tokenizer()
VOCAB = TOKENIZER.get_vocab_size()
WORDS = ["the", "the fox", "then", "over there", "ünï", "😀", "a"]


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    return GrammarCompiler(TOKENIZER, VOCAB, {EOS_TOKEN_ID})


@pytest.fixture(scope="module")
def writer() -> RandomWriter:
    return RandomWriter(TOKENIZER, vocab_size=VOCAB)


def choices(words: Sequence[str]) -> str:
    return lark_grammar("start: " + " | ".join(json.dumps(w, ensure_ascii=False) for w in words))


def allowed_ids(grammar: TokenGrammar, vocab_size: int = VOCAB) -> set[int]:
    (row,) = allowed_tokens([grammar], vocab_size)
    bits = np.unpackbits(row.view(np.uint8), bitorder="little")
    assert not bits[vocab_size:].any()
    return set(np.flatnonzero(bits).tolist())


def token_bytes(tokenizer: Tokenizer) -> dict[int, bytes]:
    """What each ordinary token stands for, from the alphabet of byte-level tokenizers."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    byte_of = {chr(b): b for b in visible} | {chr(256 + i): b for i, b in enumerate(hidden)}
    vocab = tokenizer.get_vocab()
    return {i: bytes(byte_of[c] for c in piece) for piece, i in vocab.items() if i != EOS_TOKEN_ID}


def test_allowed_tokens_equal_brute_force_along_every_path(compiler: GrammarCompiler) -> None:
    texts, tokens = [word.encode() for word in WORDS], token_bytes(TOKENIZER)
    pending, num_states = [[]], 0
    while pending:
        path: list[int] = pending.pop()
        grammar = compiler.compile(choices(WORDS))
        for token in path:
            grammar.accept(token)
        written = b"".join(tokens[token] for token in path)
        may_follow = {
            i for i, b in tokens.items() if any(text.startswith(written + b) for text in texts)
        }
        may_end = {EOS_TOKEN_ID} if written in texts else set()
        assert allowed_ids(grammar) == may_follow | may_end, written
        assert grammar.is_stopped == (not may_follow)
        pending += [[*path, token] for token in may_follow]
        num_states += 1
    assert num_states > 100


@pytest.mark.parametrize("vocab_size", [VOCAB + 1, VOCAB + 90, 1024])
def test_logits_may_be_more_than_the_tokenizer_has_tokens(vocab_size: int) -> None:
    grammar = GrammarCompiler(TOKENIZER, vocab_size, {EOS_TOKEN_ID}).compile(choices(["a"]))

    assert allowed_ids(grammar, vocab_size) == {TOKENIZER.token_to_id("a")}


@pytest.mark.parametrize("vocab_size", [VOCAB - 1, VOCAB - 40, 100, 96])
def test_logits_may_be_fewer_than_the_tokenizer_has_tokens(vocab_size: int) -> None:
    whole = GrammarCompiler(TOKENIZER, VOCAB, {EOS_TOKEN_ID}).compile(lark_grammar("start: /.*/"))
    few = GrammarCompiler(TOKENIZER, vocab_size, {EOS_TOKEN_ID}).compile(
        lark_grammar("start: /.*/")
    )

    expected = {token for token in allowed_ids(whole) if token < vocab_size}
    assert allowed_ids(few, vocab_size) == expected


def test_every_end_of_sequence_token_may_end_a_complete_text() -> None:
    ends = {EOS_TOKEN_ID, TOKENIZER.token_to_id("z")}
    grammar = GrammarCompiler(TOKENIZER, VOCAB, ends).compile(lark_grammar("start: /ab?/"))
    grammar.accept(TOKENIZER.token_to_id("a"))

    assert allowed_ids(grammar) == ends | {TOKENIZER.token_to_id("b")}
    for end in ends:
        other = GrammarCompiler(TOKENIZER, VOCAB, ends).compile(lark_grammar('start: "a"?'))
        other.accept(end)
        assert other.is_stopped


def test_special_tokens_are_no_text() -> None:
    tokenizer = byte_level_tokenizer()
    tokenizer.add_special_tokens([AddedToken("{}", special=True)])
    compiler = GrammarCompiler(tokenizer, VOCAB + 1, {EOS_TOKEN_ID})

    grammar = compiler.compile(json_grammar({"type": "object"}))

    assert VOCAB not in allowed_ids(grammar, VOCAB + 1)


def test_token_that_may_not_follow_is_refused(compiler: GrammarCompiler) -> None:
    for tokens in (["b"], ["a", "a"], ["a", "b", "b"]):
        grammar = compiler.compile(lark_grammar("start: /ab/"))
        *good, bad = [TOKENIZER.token_to_id(token) for token in tokens]
        for token in good:
            grammar.accept(token)

        with pytest.raises(EngineError) as caught:
            grammar.accept(bad)

        assert caught.value.code == "invalid_grammar"
        assert "<state>" not in caught.value.message


@pytest.mark.parametrize(
    ("grammar", "reason"),
    [
        ("", "not JSON"),
        ("start: /a/", "not JSON"),
        ("[]", "not a JSON object"),
        ("{}", "grammars"),
        ('{"grammars": []}', "empty"),
        ('{"grammars": [{}]}', "lark_grammar or json_schema"),
        ('{"grammars": [{"lark_grammar": "start: /a/"}], "max_tokens": 3}', "max_tokens"),
        ("[" * 100_000, "JSON"),
        ('{"grammars": ' + " " * MAX_GRAMMAR_BYTES + "[]}", "larger than"),
        ('{"grammars": [{"lark_grammar": "start: \ud800"}]}', "not JSON"),
        ('{"grammars": [{"lark_grammar": "start: \\ud800"}]}', ""),
        (lark_grammar("start: /a(/"), "unclosed group"),
        (lark_grammar("start: nothing"), "nothing"),
        (lark_grammar("start: /(?=a)b/"), ""),
        (json_grammar({"type": "objec"}), "objec"),
        (json_grammar({"$ref": "#/nowhere"}), "nowhere"),
        (json_grammar({"$ref": "#"}), ""),
        (json_grammar({"minimum": 3, "maximum": 2, "type": "integer"}), "Unsatisfiable"),
        (json_grammar(False), "Unsatisfiable"),
        (json_grammar(3), "object or boolean"),
    ],
)
def test_bad_grammar_is_refused_with_the_reason(
    compiler: GrammarCompiler, grammar: str, reason: str
) -> None:
    with pytest.raises(EngineError) as caught:
        compiler.compile(grammar)

    assert (caught.value.code, caught.value.retryable) == ("invalid_grammar", False)
    assert reason in caught.value.message


def nested(depth: int) -> Any:
    """Doubles with each level."""
    inner: Any = {"type": "string"}
    for _ in range(depth):
        inner = {"type": "object", "properties": {"a": inner, "b": inner}}
    return inner


HOSTILE = {
    "determinisation": lark_grammar("start: /(a|b)*a(a|b){300}c(a|b)*a(a|b){300}/"),
    "nested repetition": lark_grammar("start: /(((a{1,1000}){1,1000}){1,1000}){1,1000}/"),
    "long classes": lark_grammar(r"start: /(\p{L}|\d|\w){1,5000}/"),
    "ambiguity": lark_grammar("start: " + "x " * 500 + '\nx: ("a" | "b")?'),
    "doubling": json_grammar(nested(11)),
    "product": json_grammar(
        {
            "allOf": [
                {"anyOf": [{"required": [f"{i}{j}"], "type": "object"} for j in range(3)]}
                for i in range(14)
            ]
        }
    ),
    "large multiple": json_grammar({"type": "integer", "multipleOf": 99_991, "minimum": 10**12}),
    "many patterns": json_grammar(
        {"properties": {f"p{i}": {"pattern": "^(a|b)*a(a|b){8}$"} for i in range(1000)}}
    ),
    "huge bounds": json_grammar({"type": "string", "minLength": 10**6, "maxLength": 10**9}),
    "huge arrays": json_grammar({"items": {"items": {"maxItems": 10**5}, "maxItems": 10**5}}),
}


@pytest.mark.parametrize("grammar", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_grammar_costs_little_time(writer: RandomWriter, grammar: str) -> None:
    started = time.process_time()

    try:
        request = writer.request(grammar)
    except EngineError as error:
        assert error.code == "invalid_grammar"
    else:
        for _ in range(40):
            (result,) = sample(torch.randn(1, VOCAB), [request])
            if isinstance(result, EngineError):
                assert result.code == "invalid_grammar"
                break
            request.append(result)
            if request.is_finished:
                break

    assert time.process_time() - started < 5


def test_mask_touches_the_rows_with_a_grammar_only(writer: RandomWriter) -> None:
    logits = torch.randn(4, VOCAB)
    before = logits.clone()
    requests = [
        running_request(),
        writer.request(choices(["a"])),
        running_request(),
        writer.request(choices(["the"])),
    ]

    assert mask(logits, requests) == {}

    assert torch.equal(logits[[0, 2]], before[[0, 2]])
    for row, word in ((1, "a"), (3, "the")):
        first = {i for i, b in token_bytes(TOKENIZER).items() if word.encode().startswith(b)}
        possible = set((logits[row] > -torch.inf).nonzero()[:, 0].tolist())
        assert possible == first
        assert torch.equal(logits[row, list(first)], before[row, list(first)])


def test_grammar_that_fails_in_a_step_fails_its_row_alone(writer: RandomWriter) -> None:
    requests = [writer.request(choices(["a"])) for _ in range(3)]
    failing = requests[1].grammar
    assert isinstance(failing, TokenGrammar)
    with pytest.raises(EngineError):
        failing.accept(TOKENIZER.token_to_id("b"))

    first, failed, last = sample(torch.randn(3, VOCAB), requests)

    assert isinstance(failed, EngineError)
    assert failed.code == "invalid_grammar"
    assert first == last == SampledToken(TOKENIZER.token_to_id("a"))


def test_request_ends_when_nothing_may_follow(writer: RandomWriter) -> None:
    requests = [writer.request(choices(["the fox"]), ignore_eos=ignore) for ignore in (False, True)]

    assert writer.write(requests) == ["the fox"] * 2
    assert [request.finish_reason for request in requests] == [FinishReason.STOP] * 2


def test_end_of_sequence_ends_a_request_that_ignores_it(writer: RandomWriter) -> None:
    request = writer.request(lark_grammar("start: /a*/"), ignore_eos=True, max_tokens=5000)

    (text,) = writer.write([request])

    assert set(text) <= {"a"}
    assert request.finish_reason is FinishReason.STOP
    assert request.token_ids[-1] == EOS_TOKEN_ID


def test_end_by_length_is_told_apart_from_a_whole_text(writer: RandomWriter) -> None:
    request = writer.request(lark_grammar("start: /a{50,60}/"), max_tokens=3)

    writer.write([request])

    assert request.finish_reason is FinishReason.LENGTH


def test_grammar_wins_over_min_tokens_where_only_an_end_is_left(writer: RandomWriter) -> None:
    can_go_on = [
        writer.request(lark_grammar("start: /a*/"), min_tokens=20, seed=seed) for seed in range(8)
    ]
    must_end = writer.request(lark_grammar('start: "a"?'), min_tokens=20)
    must_end.append(SampledToken(TOKENIZER.token_to_id("a")))

    assert all(len(text) >= 20 for text in writer.write(can_go_on))
    assert must_end.finish_reason is FinishReason.STOP


def test_suppressed_ends_come_back_when_the_grammar_has_nothing_else(
    writer: RandomWriter,
) -> None:
    request = writer.request(choices([""]), min_tokens=5)

    (result,) = sample(torch.randn(1, VOCAB), [request])

    assert result == SampledToken(EOS_TOKEN_ID)


SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "string"}, "b": {"type": "array", "items": {"type": "integer"}}},
    "required": ["a", "b"],
}


def test_continuation_goes_on_at_every_position_as_if_never_cut(writer: RandomWriter) -> None:
    def step(request: Request, position: int) -> None:
        generator = torch.Generator().manual_seed(position)
        (result,) = sample(3 * torch.randn(1, VOCAB, generator=generator), [request])
        assert isinstance(result, SampledToken)
        request.append(result)

    sampling: dict[str, Any] = {"seed": 3, "frequency_penalty": 0.1, "max_tokens": 64}
    whole = writer.request(json_grammar(SCHEMA), **sampling)
    while not whole.is_finished:
        step(whole, whole.num_generated)
    generated = whole.token_ids[1:]

    for cut in range(len(generated)):
        rest = writer.request(json_grammar(SCHEMA), generated_token_ids=generated[:cut], **sampling)
        while not rest.is_finished:
            step(rest, rest.num_generated)
        assert rest.token_ids == whole.token_ids, cut


def test_continuation_with_tokens_of_another_grammar_is_refused(writer: RandomWriter) -> None:
    with pytest.raises(EngineError) as caught:
        writer.request(choices(["a"]), generated_token_ids=[TOKENIZER.token_to_id("b")])

    assert caught.value.code == "invalid_grammar"


def test_model_whose_tokenizer_can_not_be_read_refuses_grammars_only() -> None:
    odd = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))

    for compiler in (GrammarCompiler(odd, 2, {0}), GrammarCompiler(TOKENIZER, VOCAB, ())):
        with pytest.raises(EngineError) as caught:
            compiler.compile(choices(["a"]))
        assert caught.value.code == "unsupported"
