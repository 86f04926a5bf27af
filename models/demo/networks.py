"""The three networks, all of Llama's architecture, and how they are written to a folder."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, LlamaModel

from models.demo.tokens import BEGIN, CONTEXT, END, IDS, PAD, VOCAB_SIZE, save_tokenizer

# hidden size, layers, intermediate size
SIZES = {"demo": (256, 6, 704), "demo-mini": (128, 4, 256), "demo-embed": (128, 3, 256)}


def config_of(name: str) -> LlamaConfig:
    hidden_size, num_layers, intermediate_size = SIZES[name]
    return LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=IDS[BEGIN],
        eos_token_id=IDS[END],
        pad_token_id=IDS[PAD],
        attn_implementation="sdpa",
    )


def new_chat_model(name: str, seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(config_of(name))


def load_chat_model(folder: Path) -> LlamaForCausalLM:
    """In float32, to be trained on."""
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)


def new_encoder(name: str, seed: int) -> LlamaModel:
    torch.manual_seed(seed)
    return LlamaModel(config_of(name))


def save(model: LlamaForCausalLM | LlamaModel, tokenizer: Tokenizer, folder: Path) -> None:
    """bf16 safetensors in the Hugging Face layout, with the tokenizer beside them."""
    model.to("cpu", torch.bfloat16).save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    if isinstance(model, LlamaForCausalLM):
        generation = GenerationConfig(
            bos_token_id=IDS[BEGIN], eos_token_id=IDS[END], pad_token_id=IDS[PAD]
        )
        generation.save_pretrained(folder)
        return
    _save_pooling(folder, model.config.hidden_size)


def _save_pooling(folder: Path, hidden_size: int) -> None:
    """The files by which sentence-transformers says: mean over all tokens, then unit length."""
    kinds = ("Transformer", "Pooling", "Normalize")
    paths = ("", "1_Pooling", "2_Normalize")
    modules = [
        {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for n, (path, kind) in enumerate(zip(paths, kinds, strict=True))
    ]
    pooling = {"word_embedding_dimension": hidden_size, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling").mkdir(exist_ok=True)
    for path, value in ((folder / "modules.json", modules),
                        (folder / "1_Pooling" / "config.json", pooling)):  # fmt: skip
        path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
