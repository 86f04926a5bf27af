"""What single tokens stand for, as log probabilities show them: bytes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer

_BYTE_FALLBACK = re.compile(r"<0x([0-9A-F]{2})>")


class Vocabulary:
    """One model's tokens. Thread-safe."""

    def __init__(self, tokenizer: Tokenizer, document: Mapping[str, Any]) -> None:
        """`document` is the tokenizer.json of the tokenizer."""
        self._tokenizer = tokenizer
        self._added = {token["id"]: token["content"] for token in document.get("added_tokens", [])}
        self._control = {
            token["id"] for token in document.get("added_tokens", []) if token["special"]
        }
        text = str(document.get("decoder")) + str(document.get("pre_tokenizer"))
        self._is_byte_level = "ByteLevel" in text

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes a token adds to a text; none for an id the model doesn't have."""
        if (content := self._added.get(token_id)) is not None:
            return str(content).encode()
        piece = self._tokenizer.id_to_token(token_id)
        if piece is None:
            return b""
        if self._is_byte_level:
            return self._of_byte_level(piece)
        if found := _BYTE_FALLBACK.fullmatch(piece):
            return bytes([int(found[1], 16)])
        return piece.replace("\u2581", " ").encode()

    def text_of(self, token_ids: Sequence[int]) -> str:
        """What tokens say; control tokens say their names."""
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=False))

    def is_control(self, token_id: int) -> bool:
        """Whether a token is the model's own mark and stands for no text."""
        return token_id in self._control

    def _of_byte_level(self, piece: str) -> bytes:
        table = self._byte_of_character
        return b"".join(
            bytes([table[character]]) if character in table else character.encode()
            for character in piece
        )

    @cached_property
    def _byte_of_character(self) -> dict[str, int]:
        """Byte-level vocabularies write each byte as a visible character: printable Latin-1 as
        itself, the rest from U+0100 on, in order (Radford et al., GPT-2, 2019).
        """
        visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
        hidden = [byte for byte in range(256) if byte not in visible]
        shifted = {chr(0x100 + number): byte for number, byte in enumerate(hidden)}
        return {chr(byte): byte for byte in visible} | shifted
