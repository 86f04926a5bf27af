"""The rules of the code base that no type checker or linter knows."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("api", "billing", "cli", "millrace", "models", "store", "tasks", "workers")
PACKAGES = (*FOLDERS, "workers/inference", "workers/inference/engine", "workers/maintenance")
HANDLERS = ("workers.inference.handler", "billing.usage", "workers.maintenance")

MAX_LINES = 400
IMPORT_TIMEOUT_S = 100

TASK_NAME = re.compile(r"[a-z]+\.[a-z_]+")
KEY_PREFIX = re.compile(r"[a-z]+:")
CONSTANT = re.compile(r"_?[A-Z][A-Z0-9_]*")
ERROR_STATUSES = {status.value for status in HTTPStatus if status >= 400}
WITHOUT_WEIGHTS = {"AutoTokenizer", "AutoConfig"}


def _files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _nodes(path: Path) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(path.read_text(), filename=str(path)))


def _strings(path: Path) -> list[str]:
    """All string literals; of an f-string, its literal parts."""
    constants = [node.value for node in _nodes(path) if isinstance(node, ast.Constant)]
    return [value for value in constants if isinstance(value, str)]


def _python(code: str) -> str:
    """What a fresh process prints, started where the services are started."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=IMPORT_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _printed(code: str) -> Any:
    """The JSON on the last line a fresh process prints."""
    return json.loads(_python(f"import json\n{code}").splitlines()[-1])


# Imports -------------------------------------------------------------------------------------


def test_import_contracts_hold() -> None:
    report = _python("from importlinter.cli import lint_imports_command; lint_imports_command()")

    assert " 0 broken" in report


@pytest.mark.parametrize(
    ("imports", "strangers"),
    [
        ("api.app", {"torch", "transformers", "workers"}),
        ("tasks.app, billing.usage", {"torch", "transformers", "workers", "api"}),
    ],
)
def test_a_process_loads_no_code_of_another(imports: str, strangers: set[str]) -> None:
    loaded = _printed(f"import sys, {imports}\nprint(json.dumps(list(sys.modules)))")

    assert {name.partition(".")[0] for name in loaded} & strangers == set()


@pytest.mark.parametrize(
    "name", ["account", "batches", "chat", "client", "files", "jobs", "output", "text_output"]
)
def test_user_commands_know_the_client_and_no_server_code(name: str) -> None:
    nodes = list(_nodes(ROOT / f"cli/{name}.py"))
    modules = {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    modules |= {each.name for node in nodes if isinstance(node, ast.Import) for each in node.names}

    packages = {module.partition(".")[0] for module in modules}

    assert packages & {"api", "billing", "store", "tasks", "workers"} == set()
    assert "cli.operator" not in modules


# Tasks ---------------------------------------------------------------------------------------


def _declared_tasks() -> dict[str, str]:
    """Constant -> task name, of all names declared in tasks/."""
    assignments = [
        (node.targets[0], node.value)
        for path in _files("tasks")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.Assign)
    ]
    return {
        target.id: value.value
        for target, value in assignments
        if isinstance(target, ast.Name)
        and isinstance(value, ast.Constant)
        and isinstance(value.value, str)
        and TASK_NAME.fullmatch(value.value)
    }


def _handled_constants() -> list[str]:
    """The constant each `@app.task(name=...)` of the product names."""
    return [
        ast.unparse(keyword.value)
        for path in _files(*FOLDERS)
        for function in _nodes(path)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for decorator in function.decorator_list
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "app.task"
        for keyword in decorator.keywords
        if keyword.arg == "name"
    ]


def test_every_declared_task_has_exactly_one_handler() -> None:
    declared = _declared_tasks()

    handled = _handled_constants()

    assert {"GENERATE", "SETTLE", "EXPIRE_RESERVATIONS", "RETENTION", "PARTITIONS"} <= set(declared)
    assert sorted(handled) == sorted(declared)


def test_the_handlers_register_the_declared_names_and_no_others() -> None:
    imports = f"import {', '.join(HANDLERS)}\nfrom tasks.app import app"

    registered = _printed(f"{imports}\nprint(json.dumps(list(app.tasks)))")

    own = [name for name in registered if not name.startswith("celery.")]
    assert sorted(own) == sorted(_declared_tasks().values())


# Keys, statuses, weights ---------------------------------------------------------------------


def _key_prefixes() -> set[str]:
    """What the keys in tasks/keys.py begin with, and Celery's own prefix."""
    found = (KEY_PREFIX.match(text) for text in _strings(ROOT / "tasks/keys.py"))
    return {match.group() for match in found if match} | {"cel:"}


def test_redis_keys_are_spelled_in_one_file() -> None:
    prefixes = _key_prefixes()

    spelled = {
        (_name(path), text)
        for path in _files("api", "billing", "cli", "store", "tasks", "workers")
        for text in _strings(path)
        if text.startswith(tuple(prefixes)) and _name(path) != "tasks/keys.py"
    }

    assert {"stream:", "cancel:"} <= prefixes
    assert spelled == {("tasks/settings.py", "cel:")}


def _error_statuses(path: Path) -> set[int]:
    """Numbers of HTTP errors, save those a constant names as something else."""
    nodes = list(_nodes(path))
    counts = {
        id(node.value)
        for node in nodes
        if isinstance(node, ast.Assign)
        and isinstance(target := node.targets[0], ast.Name)
        and CONSTANT.fullmatch(target.id)
        and "STATUS" not in target.id
    }
    return {
        node.value
        for node in nodes
        if isinstance(node, ast.Constant)
        and type(node.value) is int
        and node.value in ERROR_STATUSES
        and id(node) not in counts
    }


def _elsewhere_in_the_api() -> list[str]:
    return [name for path in _files("api") if (name := _name(path)) != "api/errors.py"]


@pytest.mark.parametrize("name", _elsewhere_in_the_api())
def test_http_error_statuses_are_decided_in_one_file(name: str) -> None:
    assert _error_statuses(ROOT / "api/errors.py")

    assert _error_statuses(ROOT / name) == set()


def test_weights_are_loaded_in_one_file() -> None:
    files = [path for path in _files(*FOLDERS) if not _name(path).startswith("models/demo/")]

    loading = {
        _name(path)
        for path in files
        for node in _nodes(path)
        if isinstance(node, ast.Attribute)
        and node.attr == "from_pretrained"
        and ast.unparse(node.value).rpartition(".")[2] not in WITHOUT_WEIGHTS
    }

    assert loading == {"workers/inference/engine/model.py"}


OWN_CLOCK = {"api/prompts/template.py"}  # the day that a template shows


def test_the_api_compares_no_clock_of_its_own_with_times_of_postgres() -> None:
    reading = {
        _name(path)
        for path in _files("api")
        for node in _nodes(path)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in {"time.time", "datetime.now", "datetime.utcnow"}
    }

    assert reading == OWN_CLOCK


# Files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_says_what_it_is_for(package: str) -> None:
    source = (ROOT / package / "__init__.py").read_text()

    docstring = ast.get_docstring(ast.parse(source))

    assert docstring


def test_no_file_or_folder_has_a_name_that_says_nothing() -> None:
    folders = (*FOLDERS, "benchmarks", "deploy", "migrations", "tests")

    vague = [
        _name(path)
        for folder in folders
        for path in (ROOT / folder).rglob("*")
        if path.stem in {"utils", "util", "common", "helpers", "helper", "core"}
    ]

    assert vague == []


def test_no_file_of_the_product_is_too_long() -> None:
    files = _files(*FOLDERS, "migrations")

    long = {
        _name(path): num_lines
        for path in files
        if (num_lines := len(path.read_text().splitlines())) > MAX_LINES
    }

    assert long == {}
