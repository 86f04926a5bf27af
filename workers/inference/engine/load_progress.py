"""How far the loading of weights is, heard through the hook of transformers' progress bars."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Any

from transformers.utils.logging import set_tqdm_hook

# Gets the share that is done, 0 to 1.
OnShare = Callable[[float], None]


def ignore_share(share: float) -> None:
    """For a caller that doesn't want to know."""


@contextmanager
def watch_loading(on_share: OnShare) -> Iterator[None]:
    """Within it no progress bar is drawn, and `on_share` hears of every weight. Process-wide."""

    def make_bar(factory: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Bar:
        return _Bar(on_share, *args, **kwargs)

    before = set_tqdm_hook(make_bar)
    try:
        yield
    finally:
        set_tqdm_hook(before)


class _Bar:
    """As much of a tqdm as the library uses: it is iterated over, or told to do other things."""

    def __init__(
        self,
        on_share: OnShare,
        items: Iterable[Any] = (),
        *args: object,
        total: float | None = None,
        **kwargs: object,
    ) -> None:
        self._on_share = on_share
        self._items = items
        self._total = total or (len(items) if isinstance(items, Sized) else None)

    def __iter__(self) -> Iterator[Any]:
        for number, item in enumerate(self._items, start=1):
            yield item
            self._on_share(min(1.0, number / self._total) if self._total else 0.0)

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: None
