"""Applies migrations. Needs the owner's URL; other roles can't change the schema."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config

ROOT = Path(__file__).resolve().parent.parent


def alembic_config(url: str) -> Config:
    """Alembic's configuration for a database, independent of the current folder."""
    config = Config()
    config.set_main_option("script_location", str(ROOT / "migrations").replace("%", "%%"))
    config.set_main_option("sqlalchemy.url", url.replace("%", "%%"))
    return config


def upgrade(url: str, revision: str = "head") -> None:
    """Bring the schema up to a revision. Safe to call twice and from several processes."""
    command.upgrade(alembic_config(url), revision)


def downgrade(url: str, revision: str) -> None:
    """Take the schema down to a revision."""
    command.downgrade(alembic_config(url), revision)


def check(url: str) -> None:
    """Raise if the schema in the database differs from store.schema."""
    command.check(alembic_config(url))
