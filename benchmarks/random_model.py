"""M135: a random-weight Llama of 134.5 M parameters, built here; only its speed means anything.

Its tokenizer has a word for every id, so that a prompt of n words has n tokens; a variant for
structured output spells bytes.
"""

from __future__ import annotations

import json
import string
from itertools import chain, islice, product
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

VOCAB_SIZE = 49_152
CONTEXT_LENGTH = 1_024
END_TOKEN_ID = 0  # of the variant that spells


def word(token_id: int) -> str:
    """The word that is this one token."""
    return f"w{token_id}"


def build(
    folder: Path,
    *,
    seed: int = 0,
    context_length: int = CONTEXT_LENGTH,
    spells_bytes: bool = False,
) -> Path:
    """Save the model, bf16 safetensors, unless the folder has it."""
    if (folder / "model.safetensors").exists():
        return folder
    import torch  # noqa: PLC0415 (only the run that builds it)
    from transformers import LlamaConfig, LlamaForCausalLM  # noqa: PLC0415

    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=576,
        intermediate_size=1_536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=context_length,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=END_TOKEN_ID if spells_bytes else None,
        pad_token_id=None,
    )
    torch.manual_seed(seed)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer = byte_tokenizer(VOCAB_SIZE) if spells_bytes else word_tokenizer(VOCAB_SIZE)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"})
    )
    return folder


def word_tokenizer(size: int) -> Tokenizer:
    """Every id is one word."""
    vocabulary = {word(i): i for i in range(size)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=word(0)))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def byte_tokenizer(size: int) -> Tokenizer:
    """A byte-level BPE of `size` tokens without a corpus: an end token, all bytes, then merges.

    All pairs of printable characters, then words of three and four letters: as in real ones, quotes
    and brackets come alone and joined to others, so that a grammar's mask cuts across the tokens.
    """
    letters = string.ascii_lowercase
    printable = string.digits + string.ascii_letters + string.punctuation + "Ġ"  # the space
    two, three = (list(map("".join, product(letters, repeat=n))) for n in (2, 3))
    pairs = product(printable, printable)
    triples = product(two, letters)
    fours = product(three, letters)
    characters = ["<|end|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    merges = list(islice(chain(pairs, triples, fours), size - len(characters)))
    tokens = characters + ["".join(merge) for merge in merges]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True)])
    return tokenizer


def write_catalog(path: Path, model_folder: Path) -> Path:
    """A catalog that serves this model alone, as `m135`."""
    tiers = ("priority", "default", "flex", "batch")
    price = "{ input_micros = 1_000, cached_micros = 100, output_micros = 4_000 }"
    prices = "\n".join(f"{tier} = {price}" for tier in tiers)
    path.write_text(
        f"""currency = "USD"

[models.m135]
pool = "default"
source = "{model_folder}"
dtype = "bf16"
context_length = {CONTEXT_LENGTH}
max_output_tokens = 512
capabilities = ["completion"]

[models.m135.prices]
{prices}
"""
    )
    return path
