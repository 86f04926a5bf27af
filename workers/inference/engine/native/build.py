"""Compiles the C++ beside this file for the processor it runs on, once, and keeps the result."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

_FOLDER = Path(__file__).parent
_FLAGS = (
    "-std=c++20",
    "-O3",
    "-march=native",
    "-ffp-contract=fast",
    "-fPIC",
    "-shared",
    "-fvisibility=default",
)
_TIMEOUT_S = 180.0


class BuildError(Exception):
    """No compiler, or it failed; the message says what would help."""


@functools.cache
def built_library() -> Path:
    """The shared library for this processor, compiled (about 10 s) unless a past run did.

    Raises BuildError. Processes may race: each compiles to a file of its own and renames it.
    """
    compiler = _compiler()
    target = _cache_folder() / f"step-{_fingerprint(compiler)}.so"
    if not target.exists():
        _compile(compiler, target)
    return target


def _compiler() -> tuple[str, ...]:
    """$CXX, a compiler on PATH, or the one inside the `ziglang` wheel."""
    if wanted := os.environ.get("CXX"):
        return tuple(shlex.split(wanted))
    for name in ("g++", "clang++", "c++"):
        if found := shutil.which(name):
            return (found,)
    if importlib.util.find_spec("ziglang") is not None:
        return (sys.executable, "-m", "ziglang", "c++")
    raise BuildError("no C++ compiler found; apt install g++, or pip install ziglang")


def _cache_folder() -> Path:
    """A folder that only this user can write: its content is executed."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "millrace" / "native"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except OSError as error:
        return _private_folder(error)
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise BuildError(f"{folder} can be written by others; its libraries are not trusted")
    return folder


@functools.cache
def _private_folder(reason: OSError) -> Path:
    """Where no home can be written: a folder of this process, left to the system to clear."""
    del reason
    return Path(tempfile.mkdtemp(prefix="millrace-native-"))


def _fingerprint(compiler: tuple[str, ...]) -> str:
    """Changes with the sources, the flags, the compiler and the processor."""
    digest = hashlib.sha256()
    for path in sorted([*_FOLDER.glob("*.h"), *_FOLDER.glob("*.cpp")]):
        digest.update(path.name.encode() + path.read_bytes())
    digest.update(repr((_FLAGS, compiler, _version(compiler), _processor())).encode())
    return digest.hexdigest()[:20]


def _version(compiler: tuple[str, ...]) -> str:
    try:
        done = subprocess.run(
            [*compiler, "--version"], capture_output=True, text=True, timeout=_TIMEOUT_S, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise BuildError(f"{shlex.join(compiler)} does not run: {error}") from error
    return done.stdout


def _processor() -> str:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return repr(os.uname())
    return "".join(sorted({line for line in lines if line.startswith(("model", "flags"))}))


def _compile(compiler: tuple[str, ...], target: Path) -> None:
    source = _FOLDER / "step.cpp"
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        built = Path(folder) / target.name
        done = subprocess.run(
            [*compiler, *_FLAGS, str(source), "-o", str(built)],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
        if done.returncode != 0:
            raise BuildError(f"{shlex.join(compiler)} failed: {done.stderr[-2000:]}")
        built.replace(target)
