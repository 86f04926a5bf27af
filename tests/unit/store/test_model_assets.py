"""What the API needs of a model is found in a folder, or on the hub."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from store.catalog_file import CatalogError
from store.model_assets import ModelFiles, open_model, read_model_files

TOKENIZER = b'{"a": 1}'


def _read(files: Mapping[str, bytes]) -> ModelFiles:
    return read_model_files("owner/name", {"tokenizer.json": TOKENIZER, **files}.get)


def _with_template(template: Any) -> dict[str, bytes]:
    return {"tokenizer_config.json": json.dumps({"chat_template": template}).encode()}


def test_a_folder_gives_the_files_it_has(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(TOKENIZER)
    (tmp_path / "config.json").mkdir()

    read = open_model("x", tmp_path, None)

    assert read("tokenizer.json") == TOKENIZER
    assert read("chat_template.jinja") is None
    assert read_model_files("x", read) == ModelFiles({"tokenizer": TOKENIZER}, None)


def test_all_files_of_a_model_are_kept_as_they_are() -> None:
    files = _with_template("older") | {"chat_template.jinja": b"own", "config.json": b'{"n": 2}'}

    found = _read(files)

    assert found.config == {"n": 2}
    assert found.assets == {
        "tokenizer": TOKENIZER,
        "chat_template": b"own",
        "tokenizer_config": files["tokenizer_config.json"],
    }


@pytest.mark.parametrize(
    ("template", "found"),
    [
        ("one", b"one"),
        ([{"name": "tool_use", "template": "a"}, {"name": "default", "template": "b"}], b"b"),
        ([{"name": "default", "template": "a"}, {"name": "default", "template": "b"}], b"a"),
        ([{"name": "tool_use", "template": "a"}], None),
        (["default", {"template": "a"}], None),
        ([{"name": "default"}], None),
        ([], None),
        ({"default": "a"}, None),
        (None, None),
        (7, None),
    ],
)
def test_a_template_in_the_tokenizers_configuration_is_the_default_one(
    template: Any, found: bytes | None
) -> None:
    assert _read(_with_template(template)).assets.get("chat_template") == found


def test_a_model_without_a_tokenizer_is_refused() -> None:
    with pytest.raises(CatalogError, match="in owner/name"):
        read_model_files("owner/name", lambda _name: None)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_a_file_that_is_not_json_is_named(name: str) -> None:
    for data in (b"{", b"[" * 100_000):
        with pytest.raises(CatalogError, match=f"{name} is not JSON"):
            _read({name: data})
    assert _read({name: b"[]"}).config == ({} if name == "config.json" else None)


def _hub(monkeypatch: pytest.MonkeyPatch, download: Any) -> None:
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)


def test_the_hub_gives_the_files_of_a_revision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(source: str, name: str, *, revision: str | None) -> str:
        if name != "tokenizer.json":
            raise LocalEntryNotFoundError("none")
        path = tmp_path / name
        path.write_text(f"{source} at {revision}")
        return str(path)

    _hub(monkeypatch, download)

    read = open_model("owner/name", None, "v2")

    assert (read("tokenizer.json"), read("config.json")) == (b"owner/name at v2", None)


def test_what_the_hub_says_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(source: str, name: str, *, revision: str | None) -> str:
        raise RuntimeError("\n404: none such\nand a page of advice")

    _hub(monkeypatch, download)

    with pytest.raises(CatalogError) as refused:
        open_model("owner/name", None, None)("tokenizer.json")

    assert str(refused.value) == "owner/name is no folder, and the hub says: 404: none such"


def test_without_the_hubs_client_a_model_must_be_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)

    with pytest.raises(CatalogError, match="huggingface_hub isn't installed"):
        open_model("owner/name", None, None)
