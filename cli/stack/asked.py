"""What is asked of `millrace up`, judged before it starts anything: alone, and beside what runs."""

# ruff: noqa: PLC0415 (torch and the hub's library take seconds, for options that few give)

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cli.stack.catalog import DTYPES, served_model
from cli.stack.errors import MisuseError, StackError
from cli.stack.options import UpOptions
from cli.stack.state import Running

_DEVICE = re.compile(r"auto|cpu|cuda(:[0-9]{1,3})?")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_TRUE = ("1", "true", "yes", "on", "y", "t")


def check(options: UpOptions) -> None:
    """Raises StackError with the one line that says what to do."""
    if options.dtype not in DTYPES:
        raise MisuseError(f"DTYPE={options.dtype} is unknown: use one of {', '.join(DTYPES)}")
    if _DEVICE.fullmatch(options.device) is None:
        raise MisuseError(f"DEVICE={options.device} is unknown: use auto, cpu or cuda:0")
    if options.device.startswith("cuda") and options.engine != "stub":
        _check_gpu(options.device)
    if options.model is not None:
        _check_model(options.model)
        served_model(options)


def refusal(asked: Mapping[str, Any], running: Running) -> str | None:
    """What of the given options isn't so in what runs already, and how to get it; else None."""
    if not running.options:
        return None  # started by an earlier release, which doesn't say
    now = {**running.options, "port": urlsplit(running.addresses["api"]).port}
    now = {name: _comparable(name, value) for name, value in now.items()}
    wanted = {name: _comparable(name, value) for name, value in asked.items()}
    others = [name for name, value in wanted.items() if now.get(name) != value]
    if not others:
        return None
    differing = ", ".join(f"{_shown(n, asked[n])} (it runs with {_now(n, now)})" for n in others)
    again = " ".join(_shown(name, value) for name, value in asked.items())
    return (
        "Millrace is already running, and options are taken at a start alone:"
        f" {differing} not applied. To apply: `make down`, then `make up {again}`"
    )


def _check_gpu(device: str) -> None:
    import torch

    index, num = int(device.partition(":")[2] or 0), torch.cuda.device_count()
    if index < num:
        return
    if torch.version.cuda is None:
        hint = (
            "torch is built for the CPU: remove .venv, then `make up TORCH=cuda` installs the other"
        )
    else:
        hint = f"torch sees {num} GPUs" if num else "torch sees no GPU"
    raise StackError(f"DEVICE={device} can't be used: {hint}")


def _check_model(model: str) -> None:
    folder = Path(model).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise StackError(f"MODEL={model} is no folder of a model: it has no config.json")
    elif folder.exists():
        raise StackError(f"MODEL={model} is a file: name the folder that holds the model")
    elif model.startswith(("/", ".", "~")) or not _HUB_ID.fullmatch(model):
        raise StackError(f"MODEL={model}: there is no such folder, and a hub id is like owner/name")
    elif not _is_allowed_or_here(model):
        raise StackError(
            f"MODEL={model}: there is no such folder. If it is a model of the Hugging Face hub,"
            " MILLRACE_ALLOW_HUB=true lets it be fetched"
        )


def _is_allowed_or_here(hub_id: str) -> bool:
    if os.environ.get("MILLRACE_ALLOW_HUB", "").lower() in _TRUE:
        return True
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(hub_id, "config.json"), str)


def _comparable(name: str, value: Any) -> Any:
    """One folder has many names."""
    if name == "model" and value is not None and Path(value).expanduser().is_dir():
        return str(Path(value).expanduser().resolve())
    return value


def _shown(name: str, value: Any) -> str:
    return f"{name.upper()}={value}"


def _now(name: str, running: Mapping[str, Any]) -> str:
    value = running.get(name)
    return "none" if value is None else str(value)
