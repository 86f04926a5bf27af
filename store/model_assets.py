"""The files of a model that the API needs: tokenizer.json, chat template, tokenizer_config.json."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from store.catalog_file import CatalogError

TOKENIZER = "tokenizer"
CHAT_TEMPLATE = "chat_template"
TOKENIZER_CONFIG = "tokenizer_config"

_FILES = {
    TOKENIZER: "tokenizer.json",
    CHAT_TEMPLATE: "chat_template.jinja",
    TOKENIZER_CONFIG: "tokenizer_config.json",
}

ReadFile = Callable[[str], bytes | None]  # content of a file of the model, None if it has none


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """Assets by kind, and config.json where there is one."""

    assets: dict[str, bytes]
    config: dict[str, Any] | None


def open_model(source: str, folder: Path | None, revision: str | None) -> ReadFile:
    """Reads from a folder, or without one from the hub. Raises CatalogError."""
    return _folder_reader(folder) if folder else _hub_reader(source, revision)


def read_model_files(source: str, read: ReadFile) -> ModelFiles:
    """What the API needs of a model. Raises CatalogError."""
    assets = {kind: data for kind, name in _FILES.items() if (data := read(name)) is not None}
    if TOKENIZER not in assets:
        raise CatalogError(f"there is no tokenizer.json in {source}")
    if CHAT_TEMPLATE not in assets and (template := _template_in_config(assets)):
        assets[CHAT_TEMPLATE] = template.encode()
    config = read("config.json")
    return ModelFiles(assets, _parse("config.json", config) if config else None)


def _folder_reader(folder: Path) -> ReadFile:
    def read(name: str) -> bytes | None:
        path = folder / name
        return path.read_bytes() if path.is_file() else None

    return read


def _hub_reader(source: str, revision: str | None) -> ReadFile:
    try:
        from huggingface_hub import hf_hub_download  # noqa: PLC0415 (only hub models need it)
        from huggingface_hub.errors import EntryNotFoundError  # noqa: PLC0415
    except ImportError as error:
        message = f"{source} is no folder, and huggingface_hub isn't installed"
        raise CatalogError(message) from error

    def read(name: str) -> bytes | None:
        try:
            return Path(hf_hub_download(source, name, revision=revision)).read_bytes()
        except EntryNotFoundError:
            return None
        except Exception as error:  # the hub client raises errors of several libraries
            reason = str(error).strip().splitlines()[0]
            message = f"{source} is no folder, and the hub says: {reason}"
            raise CatalogError(message) from error

    return read


def _template_in_config(assets: dict[str, bytes]) -> str | None:
    """Older models keep the template in tokenizer_config.json, some several under names."""
    config = _parse("tokenizer_config.json", assets.get(TOKENIZER_CONFIG, b"{}"))
    template = config.get("chat_template")
    if isinstance(template, list):
        named = [e for e in template if isinstance(e, dict) and e.get("name") == "default"]
        template = named[0].get("template") if named else None
    return template if isinstance(template, str) else None


def _parse(name: str, data: bytes) -> dict[str, Any]:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CatalogError(f"{name} is not JSON: {error}") from error
    return document if isinstance(document, dict) else {}
