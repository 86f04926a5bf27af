"""Log probabilities in the words of chat completions (and of responses, which has the same)."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from api.dialects.text_tokens import Range, TextToken, TextTokens, within
from api.json_pieces import Entries, LaterList, ListPart
from api.prompts.vocabulary import Vocabulary


def choice_logprobs(
    vocabulary: Vocabulary | None,
    choice: Mapping[str, Any],
    *,
    names_control: bool = False,
    ranges: Sequence[Range] = ((0, sys.maxsize),),
) -> LaterList | list[dict[str, Any]]:
    """Those of a finished choice; none if it has none. What isn't read yet is read while it is
    sent. `names_control`: control tokens say their names in its text. `ranges` are the parts of
    its text that are the user's.
    """

    def entries() -> Entries:
        text = TextTokens.of(choice["text"], vocabulary, names_control=names_control)
        return lambda ids, values: token_logprobs(
            vocabulary, within(text.feed("", ids, values), ranges)
        )

    stored = choice.get("logprobs")
    if stored is True:
        return LaterList((ListPart(choice["index"], entries),))
    return list(entries()(stored["token_ids"], stored["values"])) if stored else []


def token_logprobs(
    vocabulary: Vocabulary | None, tokens: Sequence[TextToken]
) -> list[dict[str, Any]]:
    """One entry a token of the text. Control tokens are marks around it."""
    return [
        _entry(vocabulary, token.token_id, token.value[0])
        | {"top_logprobs": [_entry(vocabulary, *likely) for likely in token.value[1]]}
        for token in tokens
        if vocabulary is None or not vocabulary.is_control(token.token_id)
    ]


def _entry(vocabulary: Vocabulary | None, token_id: int, logprob: float) -> dict[str, Any]:
    data = vocabulary.token_bytes(token_id) if vocabulary else b""
    return {"token": data.decode(errors="replace"), "logprob": logprob, "bytes": list(data)}
