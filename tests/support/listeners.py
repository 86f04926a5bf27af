"""Who listens to a channel, in place of a stream."""

from __future__ import annotations


class Listener:
    """Notes down what it hears."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def wake(self) -> None:
        self.heard.append("wake")

    def wake_for_log(self) -> None:
        self.heard.append("log")

    def wake_after_reconnect(self) -> None:
        self.heard.append("reconnect")

    def tick(self, now: float) -> None:
        self.heard.append(f"tick {now:g}")

    def end(self, how: str) -> None:
        self.heard.append(f"end {how}")
