"""A typed client for Millrace.

    from millrace import Client

    with Client() as client:  # reads MILLRACE_URL and MILLRACE_API_KEY
        job = client.jobs.create(model="demo", prompt="What is a service tier?")
        for event in client.jobs.events(job.id):
            print(event.text, end="")

`AsyncClient` has the same methods as coroutines. Depends on httpx and nothing else.
"""

from millrace.async_client import AsyncClient
from millrace.batch_runs import BatchProgress
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
    RangeNotSatisfiableError,
    RateLimitError,
    ServerError,
)
from millrace.estimates import CostEstimate, Estimate, OutputEstimate
from millrace.params import CreateJobParams, Message
from millrace.types import (
    Batch,
    Event,
    File,
    Job,
    JobError,
    Model,
    Output,
    Page,
    Queue,
    RequestCounts,
    TokenUsage,
    Usage,
)

__all__ = [
    "APIConnectionError",
    "APIError",
    "AsyncClient",
    "AuthenticationError",
    "BadRequestError",
    "Batch",
    "BatchProgress",
    "Client",
    "CostEstimate",
    "CreateJobParams",
    "Estimate",
    "Event",
    "File",
    "IdempotencyKeyReusedError",
    "InsufficientQuotaError",
    "Job",
    "JobError",
    "Message",
    "MillraceError",
    "Model",
    "NotFoundError",
    "Output",
    "OutputEstimate",
    "Page",
    "PermissionDeniedError",
    "Queue",
    "RangeNotSatisfiableError",
    "RateLimitError",
    "RequestCounts",
    "ServerError",
    "TokenUsage",
    "Usage",
]
