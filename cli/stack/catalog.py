"""The catalog that `make up` loads: the demo models, and with MODEL= one more."""

from __future__ import annotations

import json
import re
from pathlib import Path

from cli.stack.errors import MisuseError
from cli.stack.files import ROOT, write_private
from cli.stack.options import UpOptions
from cli.stack.state import StateFolder

DEMO_MODEL = "demo"
DTYPES = ("auto", "fp32", "bf16", "fp16", "int8", "nf4")
# A price has to stand there; the operator's own catalog.toml says better ones. Micros per million.
_PRICES = {"priority": 4, "default": 2, "flex": 1, "batch": 1}
_INPUT_MICROS = 150_000


def served_model(options: UpOptions) -> str:
    """The name of the model the first prompt goes to."""
    if options.model is None:
        return DEMO_MODEL
    name = re.sub(r"[^A-Za-z0-9._-]", "-", Path(options.model.rstrip("/")).name).lstrip("._-")
    if not name:
        raise MisuseError(f"{options.model!r} names no model: give a folder or a hub id owner/name")
    return name[:128]


def catalog_files(state: StateFolder, options: UpOptions) -> list[Path]:
    """The files to apply; models in none of them retire."""
    files = [ROOT / "catalog.toml"]
    if options.model is not None:
        files.append(state.path / "catalog.toml")
        write_private(files[-1], _entry(options, options.model))
    return files


def _entry(options: UpOptions, model: str) -> str:
    folder = Path(model).expanduser()
    source = str(folder.resolve()) if folder.is_dir() else model
    lines = [f"[models.{json.dumps(served_model(options))}]"]
    lines += [f"source = {json.dumps(source)}", f"dtype = {json.dumps(options.dtype)}"]
    lines += ['capabilities = ["chat", "completion"]']
    for tier, weight in _PRICES.items():
        base = _INPUT_MICROS * weight
        prices = f"input_micros = {base}, cached_micros = {base // 10}, output_micros = {base * 4}"
        lines.append(f"prices.{tier} = {{ {prices} }}")
    return "\n".join(lines) + "\n"
