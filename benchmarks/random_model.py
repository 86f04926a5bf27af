"""M135: a random-weight Llama of 134.5 M parameters, built here; only its speed means anything.

Its tokenizer has a word for every id, so that a prompt of n words has n tokens.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers

VOCAB_SIZE = 49_152
CONTEXT_LENGTH = 1_024


def word(token_id: int) -> str:
    """The word that is this one token."""
    return f"w{token_id}"


def build(folder: Path, *, seed: int = 0) -> Path:
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
        max_position_embeddings=CONTEXT_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    torch.manual_seed(seed)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    vocabulary = {word(i): i for i in range(VOCAB_SIZE)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=word(0)))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"})
    )
    return folder


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
