"""Incremental text equals the text of all tokens, and never breaks a character."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from workers.inference.engine.detokenizer import TokenizerDecoder


def byte_tokenizer() -> Tokenizer:
    """One token per byte, and a special token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    return tokenizer


TOKENIZER = byte_tokenizer()
END = TOKENIZER.get_vocab_size() - 1  # the special token


def texts(token_ids: list[int], *, skip_special_tokens: bool = True) -> list[str]:
    decoder = TokenizerDecoder(TOKENIZER, skip_special_tokens=skip_special_tokens)
    return [decoder.push(token_id) for token_id in token_ids] + [decoder.flush()]


def test_emoji_split_over_tokens_comes_out_whole_with_its_last_byte() -> None:
    token_ids = TOKENIZER.encode("a🦊b").ids

    assert texts(token_ids) == ["a", "", "", "", "🦊", "b", ""]


def test_unfinished_character_comes_out_broken_only_at_the_end() -> None:
    token_ids = TOKENIZER.encode("ok🦊").ids[:-1]

    *pushed, flushed = texts(token_ids)

    assert "".join(pushed) == "ok"
    assert set(flushed) == {"�"}


def test_special_token_says_nothing() -> None:
    a, b = TOKENIZER.encode("ab").ids

    assert "".join(texts([a, END, b])) == "ab"


def test_special_token_says_its_name_where_it_is_not_skipped() -> None:
    a, b = TOKENIZER.encode("ab").ids

    assert texts([a, END, b], skip_special_tokens=False) == ["a", "<|end|>", "b", ""]


@pytest.mark.parametrize("text", ["", "plain", "Größe 東京 🦊🦊", "مرحبا\n\t  x"])
def test_pieces_add_up_to_the_text(text: str) -> None:
    assert "".join(texts(TOKENIZER.encode(text).ids)) == text


@given(st.lists(st.integers(0, END), max_size=24), st.booleans())
def test_pieces_of_any_tokens_add_up_to_what_decode_says(
    token_ids: list[int], skip_special_tokens: bool
) -> None:
    pieces = texts(token_ids, skip_special_tokens=skip_special_tokens)

    assert "".join(pieces) == TOKENIZER.decode(token_ids, skip_special_tokens=skip_special_tokens)


def test_text_at_the_end_keeps_the_space_that_tokens_before_it_give_it() -> None:
    """This decoder drops the first token's space; the last one ends like a broken character."""
    tokenizer = Tokenizer(models.WordLevel({"▁a": 0, "▁�": 1}, unk_token="▁a"))
    tokenizer.decoder = decoders.Metaspace()
    decoder = TokenizerDecoder(tokenizer)

    texts = [decoder.push(0), decoder.push(1), decoder.flush()]

    assert texts == ["a", "", " �"]
