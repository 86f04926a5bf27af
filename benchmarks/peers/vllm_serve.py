"""`vllm serve` on the CPU, the platform's peer from end to end."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from benchmarks.peers.vllm_cpu import VENV, build_venv, environment

_START_S = 600.0  # it compiles
_STOP_S = 60.0
_LOG = VENV / "last-serve.log"


class VllmServe:
    """The server and its engine, a process group of their own. A context manager."""

    def __init__(self, model: Path, *, name: str) -> None:
        build_venv()
        print("vllm serve: loading and compiling", file=sys.stderr, flush=True)
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._process = subprocess.Popen(
            _command(model, name, port),
            env=os.environ | environment() | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"},
            stdin=subprocess.DEVNULL,
            stdout=_LOG.open("w"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def __enter__(self) -> VllmServe:
        try:
            self._wait_until_ready()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def suspend(self) -> None:
        """Take no core while another arm runs."""
        os.killpg(self._process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.killpg(self._process.pid, signal.SIGCONT)

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise RuntimeError(f"vllm serve died: see {_LOG}")
            if _answers(f"{self.url}/health"):
                return
            time.sleep(1)
        raise RuntimeError(f"vllm serve isn't ready after {_START_S:.0f} s: see {_LOG}")

    def _end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.resume()
        self._process.terminate()
        try:
            self._process.wait(timeout=_STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


def _command(model: Path, name: str, port: int) -> list[str]:
    """The settings that the engine's own benchmark gives vLLM; prefix caching is off there too."""
    return [
        # What `vllm serve` runs; the command itself looks for a package of vLLM's own name.
        str(VENV / "bin" / "python"),
        "-m",
        "vllm.entrypoints.openai.api_server",
        f"--model={model}",
        f"--served-model-name={name}",
        "--host=127.0.0.1",
        f"--port={port}",
        "--dtype=bfloat16",
        "--max-model-len=1024",
        "--max-num-seqs=32",
        "--max-num-batched-tokens=1024",
        "--no-enable-prefix-caching",
        "--disable-uvicorn-access-log",
    ]


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port
