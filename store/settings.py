"""What several processes must know alike: where Postgres is, which each knows as a role of its own,
where the contents of files are, and where webhooks may go.
"""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class DatabaseSettings(BaseSettings):
    """URLs by role. A role without a URL of its own uses MILLRACE_DATABASE_URL."""

    model_config = SettingsConfigDict(env_prefix="MILLRACE_", extra="ignore")

    database_url: str = "postgresql://127.0.0.1:5432/millrace"
    database_url_api: str | None = None
    database_url_worker: str | None = None
    database_url_billing: str | None = None
    database_pool_size: int = Field(default=10, ge=1, le=500)

    @property
    def owner(self) -> str:
        """Migrations and operator commands."""
        return self.database_url

    @property
    def api(self) -> str:
        """The API's role: rows of one tenant at a time."""
        return self.database_url_api or self.database_url

    @property
    def worker(self) -> str:
        """Inference and maintenance workers."""
        return self.database_url_worker or self.database_url

    @property
    def billing(self) -> str:
        """The only role that writes money."""
        return self.database_url_billing or self.database_url


class FileSettings(BaseSettings):
    """MILLRACE_FILES_URL: a folder, or a URL that fsspec knows. The same for API and workers."""

    model_config = SettingsConfigDict(env_prefix="MILLRACE_", extra="ignore")

    files_url: str = "./.millrace/files"


class WebhookSettings(BaseSettings):
    """MILLRACE_WEBHOOKS_ALLOW_PRIVATE: send to http://, any port and private addresses too."""

    model_config = SettingsConfigDict(env_prefix="MILLRACE_WEBHOOKS_", extra="ignore")

    allow_private: bool = False
