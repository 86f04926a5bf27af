"""The Celery application. Handlers are loaded by `-I` only: no process imports another's code."""

from __future__ import annotations

from celery import Celery

from tasks import broker

broker.install()
app = Celery("millrace")
app.config_from_object("celeryconfig")
