"""Text to token ids, such that text a client wrote never becomes a control token.

A tokenizer turns `<|im_end|>` into its control token wherever it stands, so a client could close
its own message and open one of another role. Here each such string in client text is broken by a
mark (a private-use character that occurs nowhere in the request) before the template sees it. The
tokenizer then finds control tokens only where the template put them. A stretch between two of them
that holds marks is encoded again, without marks and by a tokenizer that knows no control tokens.
Text without such strings takes the ordinary path and gives what `apply_chat_template` gives.
Control tokens are those a tokenizer marks as special; other added tokens (`<think>`) are text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from tokenizers import Encoding, Tokenizer

from api.prompts.control_tokens import ControlTokens
from api.prompts.prompt import ChatPrompt, texts_of
from api.prompts.template import ChatTemplate
from api.prompts.vocabulary import Vocabulary
from api.tools.formats import find_format
from store.model_assets import CHAT_TEMPLATE, TOKENIZER, TOKENIZER_CONFIG
from tasks.errors import InvalidPrompt

# Private-use characters. A text that holds all 2,048 and a control token as well is refused.
_MARKS = tuple(map(chr, (*range(0xE000, 0xE400), *range(0xF0000, 0xF0400))))

_CONTROL_IN_TEXT = "The text contains a control token of this model."


class PromptCodec:
    """One model's tokenizer and template. Thread-safe; calls take ms to hundreds of ms."""

    def __init__(self, assets: Mapping[str, bytes]) -> None:
        document = json.loads(assets[TOKENIZER])
        config = json.loads(assets.get(TOKENIZER_CONFIG, b"{}"))
        self._tokenizer = _tokenizer(document)
        self._plain = _tokenizer(document | {"added_tokens": [], "post_processor": None})
        special = [token for token in document.get("added_tokens", []) if token["special"]]
        self._control_ids = {token["id"] for token in special}
        self._control = ControlTokens(token["content"] for token in special)
        template = assets.get(CHAT_TEMPLATE)
        self._template = ChatTemplate(template.decode(), config) if template else None
        self.tool_format = find_format(template.decode()) if template else None
        self.special_tokens = frozenset(token["content"] for token in special)
        self.vocabulary = Vocabulary(self._tokenizer, document)
        ids = self._tokenizer.get_vocab(with_added_tokens=True)
        self.vocab_size = max(ids.values(), default=-1) + 1
        self.longest_token = max(map(len, ids), default=1)

    @property
    def has_template(self) -> bool:
        """Whether the model takes messages."""
        return self._template is not None

    def encode_chat(self, chat: ChatPrompt) -> list[int]:
        """Token ids of a chat, up to where the assistant speaks. Raises InvalidPrompt."""
        if self._template is None:
            message = "This model has no chat template; send `prompt` instead of `messages`."
            raise InvalidPrompt(message, param="messages")
        messages, tools = chat.messages, chat.tools
        mark = self._mark_for(texts_of([messages, tools]))
        if mark is None:
            return self._encode(self._template.render(messages, tools), has_frame=True)
        broken = partial(self._control.break_up, mark=mark)
        messages, tools = _map_texts([messages, tools], broken)
        return self._encode_marked(self._template.render(messages, tools), mark, has_frame=True)

    def encode_prompt(self, prompt: str) -> list[int]:
        """Token ids of a bare text, with what the tokenizer itself puts around one."""
        mark = self._mark_for([prompt])
        if mark is None:
            return self._encode(prompt, has_frame=False)
        return self._encode_marked(self._control.break_up(prompt, mark), mark, has_frame=False)

    def _encode(self, text: str, *, has_frame: bool) -> list[int]:
        return self._encode_framed(text, has_frame=has_frame)[1]

    def _encode_framed(self, text: str, *, has_frame: bool) -> tuple[Encoding, list[int]]:
        """With its ids, which an encoding makes anew whenever it is asked for them.

        Refuses control tokens that nobody wrote: a normalizer may make one of look-alikes.
        """
        encoding = _run(self._tokenizer, text, has_frame=has_frame)
        ids: list[int] = encoding.ids
        num_framing = 0 if has_frame else self._tokenizer.num_special_tokens_to_add(is_pair=False)
        num_found = sum(1 for token_id in ids if token_id in self._control_ids)
        if num_found > self._control.count(text) + num_framing:
            raise InvalidPrompt(_CONTROL_IN_TEXT)
        return encoding, ids

    def _encode_marked(self, text: str, mark: str, *, has_frame: bool) -> list[int]:
        encoding, framed = self._encode_framed(text, has_frame=has_frame)
        ids: list[int] = []
        for stretch in self._stretches(framed):
            is_control = framed[stretch.start] in self._control_ids
            written = "" if is_control else _written(text, encoding, stretch)
            if mark in written:
                ids += self._encode_plain(written.replace(mark, ""))
            else:
                ids += framed[stretch.start : stretch.stop]
        return ids

    def _stretches(self, ids: Sequence[int]) -> Iterator[range]:
        """Runs of tokens: each control token by itself, and what stands between two of them."""
        begin = 0
        for index, token_id in enumerate(ids):
            if token_id in self._control_ids:
                if begin < index:
                    yield range(begin, index)
                yield range(index, index + 1)
                begin = index + 1
        if begin < len(ids):
            yield range(begin, len(ids))

    def _encode_plain(self, text: str) -> list[int]:
        ids = _run(self._plain, text, has_frame=True).ids
        # A vocabulary may hold a control token as an ordinary entry; its text has no other form.
        if not self._control_ids.isdisjoint(ids):
            raise InvalidPrompt(_CONTROL_IN_TEXT)
        return ids

    def _mark_for(self, texts: Iterable[str]) -> str | None:
        """A character that occurs nowhere in these texts; None if nothing needs a mark."""
        texts = list(texts)
        if not any(map(self._control.are_in, texts)):
            return None
        mark = next((mark for mark in _MARKS if not any(mark in text for text in texts)), None)
        if mark is None:
            raise InvalidPrompt(_CONTROL_IN_TEXT)
        return mark


def _tokenizer(document: Mapping[str, Any]) -> Tokenizer:
    tokenizer = Tokenizer.from_str(json.dumps(document))
    # Both may stand in the file as left by training; neither is part of a prompt's meaning.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _run(tokenizer: Tokenizer, text: str, *, has_frame: bool) -> Encoding:
    # encode_batch lets other threads run while it works; encode holds the interpreter lock.
    return tokenizer.encode_batch([text], add_special_tokens=not has_frame)[0]


def _written(text: str, encoding: Encoding, stretch: range) -> str:
    """What some tokens stand for. Asked for token by token: the offsets of all are made in one go,
    which takes as long as all else if it is done for each stretch.
    """
    begin, _ = encoding.token_to_chars(stretch.start) or (0, 0)
    _, end = encoding.token_to_chars(stretch.stop - 1) or (0, 0)
    return text[begin:end]


def _map_texts(value: Any, change: Any) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {_map_texts(k, change): _map_texts(member, change) for k, member in value.items()}
    if isinstance(value, list | tuple):
        return [_map_texts(member, change) for member in value]
    return value
