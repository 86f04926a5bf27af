"""Which mistakes a seed draws: those with the lowest numbers, which depend on nothing but the seed
and what the mistake makes of its lines. So code that has not changed keeps its mistakes.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator

from tests.mutants.mutant import Mutant
from tests.mutants.scope import mutants_of


def draw_numbers(path: str, source: str, seed: int) -> Iterator[tuple[bytes, Mutant]]:
    """All mistakes of a file, each with its number."""
    seen: Counter[tuple[str, str]] = Counter()  # the same line may stand twice
    for mutant in mutants_of(path, source):
        before, after = mutant.lines(source)
        text = "\0".join([str(seed), path, before, after, str(seen[before, after])])
        seen[before, after] += 1
        yield hashlib.sha256(text.encode()).digest(), mutant
