"""What the engine counts since its start."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Counters:
    """Sums over all models and restarts; they only grow. Written by the device thread only.

    Names and units as in protocol.EngineStats.
    """

    num_steps: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    num_preemptions: int = 0
    num_out_of_memory: int = 0
    num_restarts: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    schedule_s: float = 0.0
    run_s: float = 0.0
    sample_s: float = 0.0
    emit_s: float = 0.0
