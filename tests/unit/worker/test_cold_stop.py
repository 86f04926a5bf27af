"""A worker told to stop at once (SIGQUIT) ends its threads as in any other stop."""

from __future__ import annotations

from typing import Any

import pytest

from billing.usage import Settler
from workers.batches.process import DriverThread
from workers.inference.bootstrap import LifeCycle
from workers.maintenance.loops import Loops


@pytest.mark.parametrize("step", [Settler, DriverThread, LifeCycle, Loops])
def test_what_celery_terminates_is_stopped(monkeypatch: pytest.MonkeyPatch, step: Any) -> None:
    worker, stopped = object(), []
    monkeypatch.setattr(step, "stop", lambda _self, parent: stopped.append(parent))

    step(worker).terminate(worker)

    assert stopped == [worker]
