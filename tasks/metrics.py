"""Where a process shows its metrics: on MILLRACE_METRICS_PORT, if that is set."""

from __future__ import annotations

import structlog
from prometheus_client import REGISTRY, CollectorRegistry, start_http_server
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

log = structlog.get_logger(__name__)


class MetricsSettings(BaseSettings):
    """A process without a port serves none. Loopback unless told otherwise."""

    model_config = SettingsConfigDict(env_prefix="MILLRACE_METRICS_", extra="ignore")

    host: str = "127.0.0.1"
    port: int | None = Field(default=None, ge=1, le=65_535)


def serve_metrics(registry: CollectorRegistry = REGISTRY) -> None:
    """Serve /metrics from a thread. A taken port is logged: no job waits for a metric."""
    settings = MetricsSettings()
    if settings.port is None:
        return
    try:
        start_http_server(settings.port, addr=settings.host, registry=registry)
    except OSError as error:
        log.warning("metrics_not_served", port=settings.port, error=str(error))
