"""Settings and limits of the API. Limits are constants with a unit; only what differs between
installations is a setting.
"""

from __future__ import annotations

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

# Request bodies. Checked in this order: bytes, depth and size of the JSON, fields, chars, tokens.
MAX_BODY_BYTES = 1 << 20
MAX_JSON_DEPTH = 32
MAX_JSON_VALUES = 50_000  # more would hold the event loop for tens of ms

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

# Catalog changes are seen after this long, and at once when somebody asks for an unknown model.
CATALOG_REFRESH_S = 10.0


class ApiSettings(BaseSettings):
    """MILLRACE_KEY_PEPPER is required: without it no key can be checked."""

    model_config = SettingsConfigDict(env_prefix="MILLRACE_", extra="ignore")

    key_pepper: SecretStr = Field(min_length=1)
    # How long a client that left may take to come back before its job is cancelled.
    disconnect_grace_s: float = Field(default=10.0, ge=0.0, le=600.0)
    max_streams: int = Field(default=20_000, ge=1)  # open event streams of this process
    tokenizer_threads: int = Field(default=2, ge=1, le=64)
    tokenizer_queue: int = Field(default=256, ge=1)  # long prompts waiting for a thread
