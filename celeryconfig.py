"""Celery finds its settings here; they are defined in tasks/settings.py."""

from tasks.settings import *  # noqa: F403
