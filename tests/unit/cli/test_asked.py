"""What `make up` answers before it starts anything, and while it runs already."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cli.stack import asked
from cli.stack.errors import MisuseError, StackError
from cli.stack.options import UpOptions
from cli.stack.state import ProcessRecord, Running


def _running(**options: Any) -> Running:
    return Running(
        state_dir="/state",
        supervisor=ProcessRecord("supervisor", 1, "", 0.0),
        addresses={"api": "http://127.0.0.1:8000"},
        options={"port": None, "model": None, "dtype": "auto", "device": "auto"} | options,
    )


@pytest.mark.parametrize(
    "options",
    [{"dtype": "bf17"}, {"device": "gpu"}, {"device": "cuda:"}, {"device": "CPU"}, {"device": ""}],
)
def test_a_value_that_no_machine_knows_is_misuse(options: dict[str, Any]) -> None:
    with pytest.raises(MisuseError) as refused:
        asked.check(UpOptions(**options))

    (value,) = options.values()
    assert f"={value} is unknown" in str(refused.value)


@pytest.mark.parametrize(
    "model",
    ["/nowhere", "./nowhere", "~/nowhere", "nowhere", "a/b/c", "org/name", "FOLDER", "FILE"],
)
def test_a_model_that_is_not_there_is_one_line(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MILLRACE_ALLOW_HUB", raising=False)
    (tmp_path / "weights.gguf").touch()
    model = model.replace("FOLDER", str(tmp_path)).replace("FILE", f"{tmp_path}/weights.gguf")

    with pytest.raises(StackError) as refused:
        asked.check(UpOptions(model=model))

    assert model in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_gpu_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    asked.check(UpOptions(device="cuda"))
    asked.check(UpOptions(device="cuda:0"))

    with pytest.raises(StackError) as refused:
        asked.check(UpOptions(device="cuda:1"))

    assert str(refused.value).startswith("DEVICE=cuda:1 can't be used: torch")


def test_what_the_hub_may_be_asked_for_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLRACE_ALLOW_HUB", "true")

    asked.check(UpOptions(model="org/name", dtype="nf4", device="cpu"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"port": 8001}, "PORT=8001 (it runs with 8000)"),
        ({"model": "/models/a"}, "MODEL=/models/a (it runs with none)"),
        ({"dtype": "int8"}, "DTYPE=int8 (it runs with auto)"),
        ({"device": "cpu"}, "DEVICE=cpu (it runs with auto)"),
    ],
)
def test_options_that_differ_from_those_it_runs_with_are_named(
    options: dict[str, Any], words: str
) -> None:
    (name,) = options
    reason = asked.refusal(options, _running())

    assert reason is not None
    assert words in reason
    assert f"`make down`, then `make up {name.upper()}={options[name]}`" in reason


def test_options_that_it_runs_with_are_no_news(tmp_path: Path) -> None:
    running = _running(model=str(tmp_path), dtype="int8")

    assert asked.refusal({}, running) is None
    assert asked.refusal({"port": 8000, "dtype": "int8"}, running) is None
    assert asked.refusal({"model": f"{tmp_path}/../{tmp_path.name}/"}, running) is None
    assert asked.refusal({"dtype": "auto"}, running) is not None


def test_what_an_earlier_release_started_is_not_judged() -> None:
    running = _running()
    running.options = {}

    assert asked.refusal({"dtype": "int8"}, running) is None
