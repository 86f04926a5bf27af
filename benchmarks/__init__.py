"""Benchmarks: each arm against a named peer, interleaved. `--json` prints one object last.

Timings are never asserted in tests; docs/performance.md keeps the figures with their machine.
"""
