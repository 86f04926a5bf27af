"""Tiny random models in the formats of real ones: a config, safetensors and a tokenizer.json."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

EOS_TOKEN_ID = 0
CONTEXT_LENGTH = 256
_TEXT = "the quick brown fox jumps over the lazy dog while the other foxes keep sleeping there"


def byte_level_tokenizer() -> Tokenizer:
    """All 256 bytes, some merges of English, and one special token that ends the text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([_TEXT], trainer)
    return tokenizer


def save_tiny_llama(folder: Path, *, seed: int = 0, num_layers: int = 2) -> Path:
    """A float32 Llama with two query heads per KV head; the same seed gives the same weights."""
    tokenizer = byte_level_tokenizer()
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT_LENGTH,
        initializer_range=0.3,  # wide, so that greedy output is not one token for ever
        bos_token_id=None,
        eos_token_id=EOS_TOKEN_ID,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
