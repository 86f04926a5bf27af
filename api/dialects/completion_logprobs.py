"""Log probabilities in the words of text completions: parallel lists, tokens as texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from api.dialects.text_tokens import TextToken, TextTokens
from api.json_pieces import Entries, LaterList, ListPart
from api.prompts.vocabulary import Vocabulary

# One entry a token each.
NAMES = ("tokens", "token_logprobs", "top_logprobs", "text_offset")


def token_lists(
    vocabulary: Vocabulary | None, tokens: Sequence[TextToken], *, behind: int
) -> dict[str, list[Any]]:
    """The lists. `behind`: characters in front of the text of these tokens."""
    names = [_name(token.data) for token in tokens]
    return {
        "tokens": names,
        "token_logprobs": [token.value[0] for token in tokens],
        "top_logprobs": [
            _likeliest(vocabulary, token, name) for token, name in zip(tokens, names, strict=True)
        ],
        "text_offset": [behind + token.offset for token in tokens],
    }


def later_lists(
    vocabulary: Vocabulary | None, parts: Sequence[tuple[ListPart, int]]
) -> dict[str, LaterList]:
    """The same lists, read while they are sent: of the tokens of some parts, whose entries are
    TextTokens, each behind so many characters.
    """
    return {
        name: LaterList(tuple(_part(vocabulary, name, *part) for part in parts)) for name in NAMES
    }


def text_part(
    choice: int, tokens: Callable[[], TextTokens], *, is_prompt: bool = False
) -> ListPart:
    """The tokens of a text as a part of a list."""

    def entries() -> Entries:
        text = tokens()
        return lambda token_ids, values: text.feed("", token_ids, values)

    return ListPart(choice, entries, is_prompt)


def _part(vocabulary: Vocabulary | None, name: str, part: ListPart, behind: int) -> ListPart:
    def entries() -> Entries:
        shown = part.entries()
        return lambda ids, values: token_lists(vocabulary, shown(ids, values), behind=behind)[name]

    return ListPart(part.choice, entries, part.is_prompt)


def _likeliest(
    vocabulary: Vocabulary | None, token: TextToken, name: str
) -> dict[str, float] | None:
    """By what they say, the drawn token with them; None for a token that nothing stands before."""
    logprob, top = token.value
    if logprob is None:
        return None
    found = {name: logprob}
    for token_id, value in top:
        if token_id != token.token_id:
            key = _name(vocabulary.token_bytes(token_id) if vocabulary else b"")
            # Two tokens may say the same.
            found[key if key not in found else f"token_id:{token_id}"] = value
    return found


def _name(data: bytes) -> str:
    """What a token says; where that is no text, its bytes, in OpenAI's form."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
