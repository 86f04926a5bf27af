"""What `catalog apply` and `make up` refuse because nobody could serve it. Without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Thread

from api.prompts.codec import PromptCodec
from api.prompts.prompt import ChatPrompt
from store.catalog_file import CatalogError
from store.model_assets import ReadFile, read_model_files
from workers.inference.engine.checkpoint import check_checkpoint, check_vocabulary
from workers.inference.engine.errors import reason_of
from workers.inference.engine.weight_files import check_stored, read_tensors

TRIAL_S = 10.0  # for a tokenizer of some 10 MB and one message; both take a second at most
_TRIAL = ChatPrompt([{"role": "user", "content": "Hello"}])


def check_model(
    read: ReadFile, dtype: str, folder: Path | None, *, trial_s: float = TRIAL_S
) -> None:
    """Raises CatalogError, as store.catalog.CheckModel may.

    Weights are looked at as far as they are in the folder: they may be where the workers are alone.
    """
    check_description(read, dtype, trial_s=trial_s)
    if folder is None:
        return
    try:
        is_quantised = check_checkpoint(read, "auto") != "auto"
        check_stored(read_tensors(folder, is_whole=True), is_quantised=is_quantised)
    except Exception as error:  # of a file, in whatever way it is broken
        raise CatalogError(reason_of(error)) from error


def check_description(
    read: ReadFile, dtype: str, _folder: Path | None = None, *, trial_s: float = TRIAL_S
) -> None:
    """All of that but the weights, which the worker judges: `make up` serves the other models."""
    try:
        check_checkpoint(read, dtype)
        check_vocabulary(read)
        assets = read_model_files("the model", read).assets
        _within(trial_s, lambda: _try(assets))
    except Exception as error:  # of a file or a library, each in its own way
        raise CatalogError(reason_of(error)) from error


def _try(assets: Mapping[str, bytes]) -> None:
    try:
        codec = PromptCodec(assets)
    except Exception as error:  # tokenizers raises bare ones
        raise CatalogError(f"its tokenizer or chat template can't be read: {error}") from error
    if codec.has_template:
        codec.encode_chat(_TRIAL)


def _within(seconds: float, work: Callable[[], None]) -> None:
    """Raises what `work` raises. A template that never ends is left behind: the command ends."""
    errors: list[Exception] = []

    def run() -> None:
        try:
            work()
        except Exception as error:
            errors.append(error)

    thread = Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise CatalogError(f"its tokenizer and chat template need more than {seconds:g} s")
    if errors:
        raise errors[0]
