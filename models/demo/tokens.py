"""The tokenizer of the demo models and the one way a conversation becomes token ids.

`encode` gives the same ids as `chat_template.jinja` followed by the tokenizer; a test holds it.
"""

import json
import random
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from models.demo.corpus.conversations import Conversation, conversation
from models.demo.corpus.talk import Message, as_json

VOCAB_SIZE = 4096
CONTEXT = 4096  # tokens
PAD, BEGIN, END = "<|pad|>", "<|begin|>", "<|end|>"
TOOLS, TOOL_CALL, TOOL_CALL_END = "<|tools|>", "<|tool_call|>", "<|tool_call_end|>"
ROLES = {role: f"<|{role}|>" for role in ("system", "user", "assistant", "tool")}
SPECIALS = (PAD, BEGIN, END, *ROLES.values(), TOOLS, TOOL_CALL, TOOL_CALL_END)
IDS = {token: number for number, token in enumerate(SPECIALS)}
TEMPLATE = Path(__file__).with_name("chat_template.jinja")

# One piece of a rendered conversation: its text, and whether the model has to write it.
Piece = tuple[str, bool]


def pieces(made: Conversation) -> Iterator[Piece]:
    """The rendered conversation. A special token is a piece of its own."""
    yield BEGIN, False
    toolbox = [json.dumps(tool["function"], ensure_ascii=False) for tool in made.tools]
    listed: list[Piece] = [(TOOLS, False), (f"[{', '.join(toolbox)}]", False)] if toolbox else []
    if listed and made.messages[0]["role"] != "system":
        yield from [(ROLES["system"], False), *listed, (END, False)]
    for number, message in enumerate(made.messages):
        is_first_system = number == 0 and message["role"] == "system"
        yield from _message(message, listed if is_first_system else [])


def _message(message: Message, listed: list[Piece]) -> Iterator[Piece]:
    is_answer = message["role"] == "assistant"
    yield ROLES[message["role"]], False
    if message.get("content"):
        yield message["content"], is_answer
    yield from listed
    for call in message.get("tool_calls", ()):
        yield TOOL_CALL, True
        function = call["function"]
        yield as_json({"name": function["name"], "arguments": function["arguments"]}), True
        yield TOOL_CALL_END, True
    yield END, is_answer


class Encoder:
    """Encodes conversations; remembers pieces, since most of them come again and again."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        tokenizer.encode_special_tokens = True  # text never becomes a control token

        @lru_cache(maxsize=50_000)
        def ids_of(text: str) -> list[int]:
            ids: list[int] = tokenizer.encode(text).ids
            return ids

        self._ids_of = ids_of

    def encode(self, made: Conversation) -> tuple[list[int], list[int]]:
        """Token ids, and for each 1 if it is part of an answer."""
        ids: list[int] = []
        is_answer: list[int] = []
        for text, is_own in pieces(made):
            part = [IDS[text]] if text in IDS else self._ids_of(text)
            ids += part
            is_answer += [int(is_own)] * len(part)
        return ids, is_answer


def train_tokenizer(seed: int, num_conversations: int = 30_000) -> Tokenizer:
    """Byte-level BPE; digits stand alone, which makes sums and copying of ids easier."""
    rng = random.Random(seed)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIALS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (
        text
        for _ in range(num_conversations)
        for text, _ in pieces(conversation(rng, 0))
        if text not in IDS
    )
    tokenizer.train_from_iterator(texts, trainer)
    assert tokenizer.get_vocab_size() == VOCAB_SIZE
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """tokenizer.json and tokenizer_config.json with the chat template."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.encode_special_tokens = False
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BEGIN,
        "eos_token": END,
        "pad_token": PAD,
        "extra_special_tokens": [*ROLES.values(), TOOLS, TOOL_CALL, TOOL_CALL_END],
        "model_max_length": CONTEXT,
        "clean_up_tokenization_spaces": False,
        "chat_template": TEMPLATE.read_text(encoding="utf-8"),
    }
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
