"""The batch worker: reads batch files, runs their lines as jobs, writes what comes of them.

Loaded by `celery -A tasks.app worker -P threads -I workers.batches -Q batches`. A line goes exactly
the way of a request, through the API's own admission; so this package imports `api`, the only
worker that does. Any number of copies may run: each batch is leased by one at a time.
"""

from __future__ import annotations

from tasks.app import app
from workers.batches.process import DriverThread

app.steps["worker"].add(DriverThread)
