"""The one place that chooses an engine. Torch is imported only by the kind that needs it."""

from __future__ import annotations

from workers.inference.engine.config import EngineConfig
from workers.inference.engine.engine import OnProgress
from workers.inference.engine.protocol import Engine
from workers.inference.engine.stub import StubEngine


def build_engine(config: EngineConfig, on_progress: OnProgress | None = None) -> Engine:
    """An engine that is not started yet. Nothing is loaded before `start`.

    `on_progress` gets what is being loaded and how much is done (0 to 1), on the device thread.
    """
    match config.kind:
        case "stub":
            return StubEngine(config.stub, on_progress)
        case "millrace":
            return _build_millrace(config, on_progress)
        case "transformers-cb":
            return _build_transformers(config, on_progress)


def _build_millrace(config: EngineConfig, on_progress: OnProgress | None) -> Engine:
    from workers.inference.engine.millrace import MillraceEngine  # noqa: PLC0415 (imports torch)

    return MillraceEngine(config, on_progress)


def _build_transformers(config: EngineConfig, on_progress: OnProgress | None) -> Engine:
    from workers.inference.engine.transformers_cb import TransformersEngine  # noqa: PLC0415

    return TransformersEngine(config, on_progress)
