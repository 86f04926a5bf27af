"""How the settler begins and ends with its worker, without any connection."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from billing import usage
from billing.usage import Settler, settle, use_threads
from tasks.app import app


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was done, where the thread, logs and the metrics' port are doubles."""
    done: list[str] = []

    def new_settler(url: str) -> SimpleNamespace:
        return SimpleNamespace(
            start=lambda: done.append(f"started {url}"),
            wake=lambda: done.append("woken"),
            stop=lambda: done.append("stopped"),
        )

    monkeypatch.setattr(usage, "new_settler", new_settler)
    monkeypatch.setattr(usage, "serve_metrics", lambda: done.append("metrics"))
    monkeypatch.setattr(usage, "configure_logs", lambda: done.append("logs"))
    monkeypatch.setattr(Settler, "thread", None)
    monkeypatch.setenv("MILLRACE_DATABASE_URL_BILLING", "the role's own")
    return done


def test_the_settler_lives_as_long_as_its_worker(done: list[str]) -> None:
    step = Settler.__new__(Settler)

    step.start(None)
    settle.apply(args=["a job"], throw=True)
    step.stop(None)

    assert done == ["started the role's own", "metrics", "woken", "stopped"]
    assert Settler in app.steps["worker"]


def test_a_worker_that_has_no_settler_yet_takes_hints_and_ends(done: list[str]) -> None:
    settle.apply(args=["a job"], throw=True)
    Settler.__new__(Settler).stop(None)

    assert done == []


def test_tasks_run_on_threads(done: list[str]) -> None:
    worker = SimpleNamespace(pool_cls="prefork")

    use_threads(worker)

    assert (worker.pool_cls, done) == ("threads", ["logs"])
