"""What several processes must know alike: where Postgres is, which each knows as a role of its own,
where the contents of files are, and where webhooks may go.
"""

from __future__ import annotations

from functools import cache

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


class RetentionSettings(BaseSettings):
    """MILLRACE_KEEP_*: for how long after the end of a job or batch its parts are kept, in days
    (_D) or hours (_H). The same for API and maintenance workers. See docs/retention.md.
    """

    model_config = SettingsConfigDict(env_prefix="MILLRACE_KEEP_", extra="ignore")

    event_logs_h: float = Field(default=24.0, ge=0.25, le=87_600.0)
    payloads_d: float = Field(default=30.0, ge=1.0, le=3_650.0)
    results_d: float = Field(default=30.0, ge=1.0, le=3_650.0)  # then the job is answered with 404
    attempts_d: float = Field(default=7.0, ge=1.0, le=3_650.0)
    jobs_d: float = Field(default=90.0, ge=1.0, le=3_650.0)
    outcomes_d: float = Field(default=90.0, ge=1.0, le=3_650.0)
    batches_d: float = Field(default=90.0, ge=1.0, le=3_650.0)
    webhook_deliveries_d: float = Field(default=30.0, ge=1.0, le=3_650.0)


@cache
def keep() -> RetentionSettings:
    """What this process was told."""
    return RetentionSettings()
