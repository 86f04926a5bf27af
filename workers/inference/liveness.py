"""Whether the engine lives: a hung kernel must lose its lease, a long step must not."""

from __future__ import annotations

from workers.inference.engine.protocol import Phase, Progress

# A declared phase may go on this long without a movement.
PHASE_LIMIT_S = {Phase.LOADING: 600.0, Phase.COMPILING: 180.0}


class Liveness:
    """Judges one look at the engine's progress after the other. Not thread-safe."""

    def __init__(self) -> None:
        self._moved: tuple[Progress, float] | None = None  # the last movement, and when it was seen

    def is_alive(self, progress: Progress, now: float) -> bool:
        """Whether it moved since the last look, is idle, or may stand still for so long."""
        if self._moved is None or progress.is_idle or progress.has_moved_since(self._moved[0]):
            self._moved = progress, now
            return True
        limit_s = PHASE_LIMIT_S.get(progress.phase, progress.patience_s)
        return now - self._moved[1] < limit_s
