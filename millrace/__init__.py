"""A typed client for Millrace.

    from millrace import Client

    with Client() as client:  # reads MILLRACE_URL and MILLRACE_API_KEY
        job = client.jobs.create(model="demo", prompt="What is a service tier?")
        for event in client.jobs.events(job.id):
            print(event.text, end="")

`AsyncClient` has the same methods as coroutines. Depends on httpx and nothing else.
"""

from millrace.async_client import AsyncClient
from millrace.client import Client
from millrace.errors import (
    APIConnectionError,
    APIError,
    AuthenticationError,
    BadRequestError,
    IdempotencyKeyReusedError,
    InsufficientQuotaError,
    MillraceError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    ServerError,
)
from millrace.params import CreateJobParams, Message
from millrace.types import Event, Job, JobError, Model, Output, Page, Queue, TokenUsage, Usage

__all__ = [
    "APIConnectionError",
    "APIError",
    "AsyncClient",
    "AuthenticationError",
    "BadRequestError",
    "Client",
    "CreateJobParams",
    "Event",
    "IdempotencyKeyReusedError",
    "InsufficientQuotaError",
    "Job",
    "JobError",
    "Message",
    "MillraceError",
    "Model",
    "NotFoundError",
    "Output",
    "Page",
    "PermissionDeniedError",
    "Queue",
    "RateLimitError",
    "ServerError",
    "TokenUsage",
    "Usage",
]
