"""Tiny random models in the formats of real ones: a config, safetensors and a tokenizer.json."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    PhiConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

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


# Covered by the compiled step. Windows of 20 tokens, so that short tests see them slide.
NATIVE_ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3", "gemma3")
# Run through transformers' own modules.
OTHER_ARCHITECTURES = ("gpt2", "phi")
ARCHITECTURES = NATIVE_ARCHITECTURES + OTHER_ARCHITECTURES


def save_tiny(architecture: str, folder: Path, *, seed: int = 0) -> Path:
    """A float32 model of the architecture, with random weights, two layers (Gemma: six)."""
    tokenizer = byte_level_tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(_config(architecture, tokenizer.get_vocab_size()))
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:  # norms and biases start as ones and zeros, which hide mistakes
                torch.nn.init.normal_(parameter, mean=float("norm" in name), std=0.2)
        model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def _config(architecture: str, vocab_size: int) -> PretrainedConfig:
    ends: dict[str, Any] = {"bos_token_id": None, "eos_token_id": EOS_TOKEN_ID}
    common: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": 64,
        "intermediate_size": 112,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT_LENGTH,
        "initializer_range": 0.3,
        "pad_token_id": None,
        **ends,
    }
    builders: dict[str, Callable[[], PretrainedConfig]] = {
        "llama": lambda: LlamaConfig(**common, tie_word_embeddings=False),
        "mistral": lambda: MistralConfig(**common, sliding_window=20),
        "qwen2": lambda: Qwen2Config(**common),
        "qwen3": lambda: Qwen3Config(**common, head_dim=32, tie_word_embeddings=True),
        "gemma3": lambda: Gemma3TextConfig(
            **{**common, "num_hidden_layers": 6}, head_dim=32, sliding_window=20
        ),
        "gpt2": lambda: GPT2Config(
            vocab_size=vocab_size,
            n_embd=64,
            n_layer=2,
            n_head=4,
            n_positions=CONTEXT_LENGTH,
            initializer_range=0.3,
            **ends,
        ),
        "phi": lambda: PhiConfig(**common, partial_rotary_factor=0.5),
    }
    return builders[architecture]()
