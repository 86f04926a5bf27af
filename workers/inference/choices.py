"""What each choice of a job has produced over all attempts; its way into a checkpoint and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from store.attempts import Checkpoint, Split
from tasks.token_ids import pack_token_ids, unpack_token_ids
from workers.inference.engine.protocol import FinishReason, TokenLogprobs, TokenOutput

# OpenAI's closed list of finish reasons; a choice cancelled or failed has none.
_WIRE_REASONS: dict[FinishReason | None, str] = {
    FinishReason.STOP: "stop",
    FinishReason.LENGTH: "length",
    FinishReason.DEADLINE: "length",
}


class Choice:
    """One choice's output, and how it ended in this attempt."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.token_ids: list[int] = []
        # As the wire has them, one for each token that has any: fewer than the tokens once a gap
        # has lost some.
        self.logprobs: list[Any] = []
        self.terminal: TokenOutput | None = None
        self._text: list[str] = []

    @property
    def text(self) -> str:
        """All text so far."""
        return "".join(self._text)

    @property
    def finish_reason(self) -> str | None:
        """As the wire has it; None while it goes on, and where it was cut off."""
        return _WIRE_REASONS.get(self.terminal.finish_reason) if self.terminal else None

    def add(self, token_ids: Sequence[int], text: str, logprobs: Sequence[Any] = ()) -> None:
        """Go on by these."""
        self.token_ids += token_ids
        self.logprobs += logprobs
        self._text.append(text)


def wire_logprobs(logprobs: Sequence[TokenLogprobs]) -> list[Any]:
    """As events and results have them: `[logprob, [[token id, logprob], ...]]` for each token."""
    return [[of_token.logprob, of_token.top] for of_token in logprobs]


def to_checkpoint(seq: int, choices: Sequence[Choice]) -> Checkpoint:
    """All choices' output up to event `seq`."""
    texts = [choice.text for choice in choices]
    splits: list[Split] = [
        (len(choice.token_ids), len(text), choice.finish_reason)
        for choice, text in zip(choices, texts, strict=True)
    ]
    return Checkpoint(
        seq=seq,
        token_ids=pack_token_ids(token_id for choice in choices for token_id in choice.token_ids),
        text="".join(texts),
        splits=tuple(splits) if len(splits) > 1 else None,
    )


def from_checkpoint(checkpoint: Checkpoint, num_choices: int) -> list[Choice]:
    """The choices as the checkpoint has them; those it doesn't know have produced nothing."""
    token_ids, text = unpack_token_ids(checkpoint.token_ids), checkpoint.text
    splits = checkpoint.splits or ((len(token_ids), len(text), None),)
    choices = [Choice(index) for index in range(num_choices)]
    for choice, (num_tokens, num_chars, _) in zip(choices, splits, strict=False):
        choice.add(token_ids[:num_tokens], text[:num_chars])
        token_ids, text = token_ids[num_tokens:], text[num_chars:]
    return choices
