"""The maintenance worker: what keeps jobs from being stuck or lost when other processes die.

Loaded by `celery -A tasks.app worker -P threads -B -I workers.maintenance -Q maintenance`. The
loops need Postgres only; periodic tasks come from beat. Any number of copies may run.
"""

from __future__ import annotations

from tasks.app import app
from tasks.maintenance import BEAT_SCHEDULE
from workers.maintenance import beat as beat
from workers.maintenance import periodic as periodic
from workers.maintenance.loops import Loops

app.conf.beat_schedule = BEAT_SCHEDULE
app.steps["worker"].add(Loops)
