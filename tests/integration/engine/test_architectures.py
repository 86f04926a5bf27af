"""All text architectures of transformers, tiny: each is served as transformers computes it, or not.

`python -m benchmarks.architectures NAME` tries one.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from benchmarks.architectures import architectures

_NUM_PARTS = 12  # of the list: each ends well before a slow test's limit


@pytest.mark.slow
@pytest.mark.parametrize("part", range(_NUM_PARTS))
def test_no_architecture_is_served_wrong(part: int) -> None:
    names = architectures()[part::_NUM_PARTS]

    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.architectures", "--json", *names],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )

    results = json.loads(done.stdout.splitlines()[-1])["results"]
    assert results.keys() == set(names)
    assert {n: found for n, found in results.items() if found["result"] == "wrong"} == {}


def test_what_transformers_ships_is_found() -> None:
    names = architectures()

    assert {"llama", "qwen2", "gpt2", "gemma2", "phi3", "mamba"} <= set(names)
    assert len(names) > 150
