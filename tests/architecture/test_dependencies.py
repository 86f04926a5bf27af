"""The locks hold what pyproject.toml asks for, on every machine that Millrace may run on."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]


def _direct_dependencies() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    locked = project["optional-dependencies"].items()
    not_locked = ("s3", "kernels", "compat", "agents")
    extras = [lines for name, lines in locked if name not in not_locked]
    return [Requirement(line) for lines in (project["dependencies"], *extras) for line in lines]


_PARTS = ("compat", "agents", "cuda", "kernels")
_LOCKS = ["requirements.lock", *(f"deploy/{each}.lock" for each in _PARTS)]


def _pinned(lock: str) -> dict[str, str]:
    """Each requirement of a lock with all that is said of it."""
    text = (ROOT / lock).read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {line.partition(" --hash")[0]: line for line in lines}


def _pins() -> dict[str, Version]:
    found = [Requirement(text) for text in _pinned("requirements.lock")]
    return {
        canonicalize_name(pin.name): Version(specifier.version)
        for pin in found
        for specifier in pin.specifier
        if specifier.operator == "=="
    }


@pytest.mark.parametrize("lock", _LOCKS)
def test_every_locked_package_has_a_version_and_hashes(lock: str) -> None:
    loose = [
        requirement
        for requirement, line in _pinned(lock).items()
        if "==" not in requirement or not re.search(r"--hash=sha256:[0-9a-f]{64}( |$)", line)
    ]

    assert loose == []


def test_every_direct_dependency_is_pinned_within_its_bounds() -> None:
    pins = _pins()

    unmet = [
        str(requirement)
        for requirement in _direct_dependencies()
        if (pin := pins.get(canonicalize_name(requirement.name))) is None
        or not requirement.specifier.contains(pin, prereleases=True)
    ]

    assert unmet == []


_LINUX = {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix"}


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("python", ["3.11.0", "3.11.9", "3.12.0", "3.13.0", "3.14.0"])
def test_the_lock_holds_what_every_python_needs(python: str, machine: str) -> None:
    """pip refuses a list with hashes that lacks one package, and some are for old Pythons alone."""
    minor = python.rpartition(".")[0]
    environment = {
        **_LINUX,
        "python_version": minor,
        "python_full_version": python,
        "platform_machine": machine,
    }

    # What torch needs besides is in a lock of its own.
    needed = _needed({"torch": set()}, _direct_dependencies(), environment)

    assert needed.keys() - _pins().keys() == set()


def _needed(
    found: dict[str, set[str]], requirements: list[Requirement], environment: dict[str, str]
) -> dict[str, set[str]]:
    """Packages with their extras, and all that they need, beside what was found before."""
    for requirement in requirements:
        name = canonicalize_name(requirement.name)
        if name in found and found[name] >= requirement.extras:
            continue
        extras = found.setdefault(name, set())
        extras |= {"", *requirement.extras}
        _needed(found, _requirements_of(name, extras, environment), environment)
    return found


def _requirements_of(name: str, extras: set[str], environment: dict[str, str]) -> list[Requirement]:
    """Of an installed package. One that this Python doesn't need isn't there to be asked."""
    try:
        lines = metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return []
    return [
        requirement
        for requirement in map(Requirement, lines)
        if requirement.marker is None
        or any(requirement.marker.evaluate({**environment, "extra": e}) for e in extras)
    ]
