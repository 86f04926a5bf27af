"""Where the services are, and Celery's settings. Each Celery setting that differs from the default
says what goes wrong without it. Only this module reads the broker's environment.
"""

from __future__ import annotations

from pydantic_settings import BaseSettings, SettingsConfigDict

from tasks.queues import BATCHES, BILLING, MAINTENANCE, WEBHOOKS, named_queue


class RedisSettings(BaseSettings):
    """One URL a role, so that splitting Redis is a setting. All default to MILLRACE_REDIS_URL."""

    model_config = SettingsConfigDict(env_prefix="MILLRACE_", extra="ignore")

    redis_url: str = "redis://127.0.0.1:6379/0"
    broker_url: str | None = None
    stream_url: str | None = None
    limits_url: str | None = None

    @property
    def broker(self) -> str:
        """Celery's queues: hints only, may be lost."""
        return self.broker_url or self.redis_url

    @property
    def stream(self) -> str:
        """Token logs and their pub/sub channels."""
        return self.stream_url or self.redis_url

    @property
    def limits(self) -> str:
        """Rate limits."""
        return self.limits_url or self.redis_url


_redis = RedisSettings()

broker_url = _redis.broker
result_backend = None  # truth is in Postgres; results in Redis would only grow
task_ignore_result = True
task_store_errors_even_if_ignored = False

# JSON both ways: an accepted pickle is remote code execution for whoever reaches Redis.
task_serializer = "json"
accept_content = ["json"]
result_serializer = "json"
result_accept_content = ["json"]

# A message is a hint. Late acks would redeliver it to the same busy worker after the visibility
# timeout and run the job four times over; the re-hinter replaces them.
task_acks_late = False
task_reject_on_worker_lost = False
task_track_started = False
task_publish_retry = False  # the re-hinter is the retry
task_create_missing_queues = False  # a typo must not become a queue that nobody reads
task_queues = [named_queue(name) for name in (BILLING, WEBHOOKS, MAINTENANCE, BATCHES)]
task_default_queue = MAINTENANCE
task_default_exchange = MAINTENANCE
task_default_routing_key = MAINTENANCE

# A message is taken only when a slot is free: the choice of lane is late, lengths in Flower true.
worker_prefetch_multiplier = 1
worker_disable_prefetch = True
worker_eta_task_limit = 100  # no task here has an ETA; a belt against one that does
worker_enable_prefetch_count_reduction = False  # concurrency is guarded by disable_prefetch
worker_cancel_long_running_tasks_on_connection_loss = False  # a Redis blip must not end generation
worker_send_task_events = True  # for Flower; affordable since arguments are one job id
worker_hijack_root_logger = False
worker_redirect_stdouts = False

broker_connection_retry_on_startup = True
broker_connection_max_retries = None  # never give up on Redis
# Nor on one that answers and takes no writes: its disk is full, it has become a replica. Without
# this, such an answer ends the worker, and each of its jobs loses an attempt.
broker_channel_error_retry = True
broker_pool_limit = 20
broker_transport_options = {
    "priority_steps": [0],  # message priorities outrank queue order in BRPOP and break fairness
    "queue_order_strategy": "tasks.fairness:VirtualTokenCycle",
    "visibility_timeout": 3600,
    "socket_timeout": 5,  # without it a publish on a dead connection blocks for ever
    "socket_connect_timeout": 2,
    "socket_keepalive": True,
    "health_check_interval": 10,
    "global_keyprefix": "cel:",
    # A publish while Redis is away fails after one more try, not after 6 s of them. Consumers don't
    # come this way; they try for ever.
    "max_retries": 1,
    "interval_start": 0.1,
    "interval_step": 0.0,
    "interval_max": 0.1,
}
