"""A byte-level tokenizer and chat template made in memory: the same kind as the demo models'."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

CONTROL_TOKENS = ("<|begin|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")

TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
  {%- if message.role == "developer" -%}{{- raise_exception("no developers here") -}}{%- endif -%}
  {{- "<|" ~ message.role ~ "|>" -}}{{- message.content | trim -}}{{- "<|end|>" -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- "<|assistant|>" -}}{%- endif -%}
"""

_TEXT = ["What is a service tier? A service tier says how urgent a job is.", "three four five six"]


def tiny_tokenizer() -> Tokenizer:
    """Trained in milliseconds, always the same."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=[AddedToken(token, special=True) for token in CONTROL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXT, trainer)
    tokenizer.add_tokens(["<think>"])
    return tokenizer


def write_model_folder(folder: Path, *, context_length: int = 256) -> Path:
    """A model's folder without weights, enough for the catalog."""
    folder.mkdir(parents=True, exist_ok=True)
    tiny_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|begin|>",
        "eos_token": {"__type": "AddedToken", "content": "<|end|>"},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": context_length}))
    return folder
