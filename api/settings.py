"""Settings and limits of the API. Limits are constants with a unit; only what differs between
installations is a setting.
"""

from __future__ import annotations

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

# Request bodies. Checked in this order: bytes, depth and size of the JSON, fields, chars, tokens.
MAX_BODY_BYTES = 1 << 20
# Of bodies that are refused unread, from all who send some: they must not fill the event loop.
DROPPED_BYTES_PER_S = 32 << 20
MAX_JSON_DEPTH = 32
MAX_JSON_VALUES = 50_000  # more would hold the event loop for tens of ms

# Files. The one route that takes large bodies never holds one in memory.
MAX_FILE_BYTES = 200 << 20
MAX_FORM_BYTES = 64 << 10  # fields, headers and boundaries around an uploaded file
BODY_LIMITS = {("POST", "/v1/files"): MAX_FILE_BYTES + MAX_FORM_BYTES}
UPLOAD_IDLE_S = 60.0  # without a byte
MAX_UPLOADS, MAX_TENANT_UPLOADS = 64, 16  # at once in this process
MAX_WEBHOOK_TESTS_PER_H = 100  # a tenant
MAX_DOWNLOADS, MAX_TENANT_DOWNLOADS = 256, 64

# Jobs.
DEFAULT_DEADLINE_S = 3_600.0
MAX_DEADLINE_S = 86_400.0
MAX_FAILS = 3  # lost or errored attempts before a job fails
MAX_WAIT_S = 60.0  # of a long poll; below the idle timeout of common proxies

# Keys. A revoked key works for at most POSITIVE_TTL_S.
KEY_POSITIVE_TTL_S = 30.0
KEY_NEGATIVE_TTL_S = 5.0
KEY_CACHE_SIZE = 10_000

# Streams.
HEARTBEAT_S = 15.0  # proxies cut a silent connection after 60 s
SEND_TIMEOUT_S = 30.0  # for a client that stopped reading without leaving
STREAM_GRACE_S = 60.0  # a stream may outlive its job's deadline by this much
CANCEL_WAIT_S = 5.0  # for the end of a job that its client cancels; its worker needs a step

# Requests that a tenant or a key may have open beyond those that wait for jobs: so it can still
# look at jobs and cancel them.
SPARE_REQUESTS = 256

# Answered while no other request can be carried.
HEALTH_PATHS = frozenset({b"/livez", b"/readyz", b"/health", b"/ping"})

# Catalog changes are seen after this long, and at once when somebody asks for an unknown model.
CATALOG_REFRESH_S = 10.0


class ServerSettings(BaseSettings):
    """What the server itself must know before it builds the application."""

    model_config = SettingsConfigDict(env_prefix="MILLRACE_", extra="ignore")

    # Connections of this process that have a request. By default 20,000, or as many as the limit of
    # open files leaves room for.
    max_connections: int | None = Field(default=None, ge=1)


class ApiSettings(BaseSettings):
    """MILLRACE_KEY_PEPPER is required: without it no key can be checked."""

    model_config = SettingsConfigDict(env_prefix="MILLRACE_", extra="ignore")

    key_pepper: SecretStr = Field(min_length=1)
    # How long a client that left may take to come back before its job is cancelled.
    disconnect_grace_s: float = Field(default=10.0, ge=0.0, le=600.0)
    max_streams: int = Field(default=20_000, ge=1)  # open event streams of this process
    # Streams, long polls and completions that wait, at once in this process.
    max_tenant_waiting: int = Field(default=2_000, ge=1)
    max_key_waiting: int = Field(default=1_000, ge=1)
    # Requests of a tenant that this process works on at once; more wait behind its own.
    max_tenant_turns: int = Field(default=8, ge=1)
    tokenizer_threads: int = Field(default=2, ge=1, le=64)
    tokenizer_queue: int = Field(default=256, ge=1)  # long prompts waiting for a thread
    file_threads: int = Field(default=8, ge=1, le=64)  # reading and writing contents of files
    files_quota_bytes: int = Field(default=10 << 30, ge=0)  # stored, a tenant
    # Of batches that are not over, for tenants without a quota of their own.
    max_batches: int = Field(default=100, ge=0)
    max_batch_bytes: int = Field(default=1 << 30, ge=0)  # of their input files
    max_batches_per_h: int = Field(default=2_000, ge=1)  # made by a tenant
