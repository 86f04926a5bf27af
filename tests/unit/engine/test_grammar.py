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
from workers.inference.engine.errors import EngineError
from workers.inference.engine.grammar import (
    MAX_GRAMMAR_BYTES,
    GrammarCompiler,
    TokenGrammar,
    allowed_tokens,
)
from workers.inference.engine.sampler import sample

TOKENIZER = byte_level_tokenizer()
VOCAB = TOKENIZER.get_vocab_size()
WORDS = ["the", "the fox", "then", "over there", "ünï", "😀", "a"]


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    return GrammarCompiler(TOKENIZER, VOCAB, {EOS_TOKEN_ID})


@pytest.fixture(scope="module")
def writer() -> RandomWriter:
    return RandomWriter(TOKENIZER, vocab_size=VOCAB)


def choices(words: Sequence[str], *, options: str = "") -> str:
    quoted = (json.dumps(word, ensure_ascii=False) for word in words)
    return lark_grammar(f"{options}\nstart: {' | '.join(quoted)}")


def token_id(piece: str) -> int:
    found = TOKENIZER.token_to_id(piece)
    assert found is not None
    return found


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
    # Else text that can only go on in one way would have to do so in the usual tokens.
    serialised = choices(WORDS, options='%llguidance {"no_forcing": true}')
    pending: list[list[int]] = [[]]
    num_states = 0
    while pending:
        path = pending.pop()
        grammar = compiler.compile(serialised)
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


def test_text_that_can_go_on_in_one_way_only_does_so_in_the_usual_tokens(
    compiler: GrammarCompiler,
) -> None:
    text = "the quick brown fox"
    grammar = compiler.compile(choices([text]))

    for token in TOKENIZER.encode(text).ids:
        assert allowed_ids(grammar) == {token}
        grammar.accept(token)

    assert grammar.is_stopped


@pytest.mark.parametrize("vocab_size", [VOCAB + 1, VOCAB + 90, 1024])
def test_logits_may_be_more_than_the_tokenizer_has_tokens(vocab_size: int) -> None:
    grammar = GrammarCompiler(TOKENIZER, vocab_size, {EOS_TOKEN_ID}).compile(choices(["a"]))

    assert allowed_ids(grammar, vocab_size) == {token_id("a")}


@pytest.mark.parametrize("vocab_size", [VOCAB - 1, VOCAB - 40, 100, 96])
def test_logits_may_be_fewer_than_the_tokenizer_has_tokens(vocab_size: int) -> None:
    whole = GrammarCompiler(TOKENIZER, VOCAB, {EOS_TOKEN_ID}).compile(lark_grammar("start: /.*/"))
    few = GrammarCompiler(TOKENIZER, vocab_size, {EOS_TOKEN_ID}).compile(
        lark_grammar("start: /.*/")
    )

    expected = {token for token in allowed_ids(whole) if token < vocab_size}
    assert allowed_ids(few, vocab_size) == expected


def test_every_end_of_sequence_token_may_end_a_complete_text() -> None:
    ends = {EOS_TOKEN_ID, token_id("z")}
    grammar = GrammarCompiler(TOKENIZER, VOCAB, ends).compile(lark_grammar("start: /ab?/"))
    grammar.accept(token_id("a"))

    assert allowed_ids(grammar) == ends | {token_id("b")}
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
        *good, bad = [token_id(token) for token in tokens]
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

    code = write_some(writer, grammar)

    assert code in (None, "invalid_grammar")
    assert time.process_time() - started < 5


def write_some(writer: RandomWriter, grammar: str) -> str | None:
    """The code of the error that 40 tokens under the grammar end with, if they do."""
    try:
        request = writer.request(grammar)
    except EngineError as error:
        return error.code
    for _ in range(40):
        (result,) = sample(torch.randn(1, VOCAB), [request])
        if isinstance(result, EngineError):
            return result.code
        request.append(result)
        if request.is_finished:
            break
    return None


def test_model_whose_tokenizer_can_not_be_read_refuses_grammars_only() -> None:
    odd = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))

    for compiler in (GrammarCompiler(odd, 2, {0}), GrammarCompiler(TOKENIZER, VOCAB, ())):
        with pytest.raises(EngineError) as caught:
            compiler.compile(choices(["a"]))
        assert caught.value.code == "unsupported"
