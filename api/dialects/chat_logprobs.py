"""Log probabilities in the words of chat completions (and of responses, which has the same)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from api.json_pieces import LaterList
from api.prompts.vocabulary import Vocabulary

# [log probability, [[token id, log probability], ...]]: how native events and results hold them.
TokenLogprob = Sequence[Any]


def choice_logprobs(
    vocabulary: Vocabulary | None, choice: Mapping[str, Any]
) -> LaterList | list[dict[str, Any]]:
    """Those of a finished choice; none if it has none. What isn't read yet is read while it is
    sent.
    """
    stored = choice.get("logprobs")
    if stored is True:
        return LaterList(choice["index"], partial(token_logprobs, vocabulary))
    return token_logprobs(vocabulary, stored["token_ids"], stored["values"]) if stored else []


def token_logprobs(
    vocabulary: Vocabulary | None, token_ids: Sequence[int], values: Sequence[TokenLogprob]
) -> list[dict[str, Any]]:
    """One entry a token of the text. Control tokens end a text and are no part of it."""
    return [
        _entry(vocabulary, token_id, logprob)
        | {"top_logprobs": [_entry(vocabulary, *likely) for likely in top]}
        for token_id, (logprob, top) in zip(token_ids, values, strict=True)
        if vocabulary is None or not vocabulary.is_control(token_id)
    ]


def _entry(vocabulary: Vocabulary | None, token_id: int, logprob: float) -> dict[str, Any]:
    data = vocabulary.token_bytes(token_id) if vocabulary else b""
    return {"token": data.decode(errors="replace"), "logprob": logprob, "bytes": list(data)}
