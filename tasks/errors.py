"""ServiceError and its tree. The class fixes `code` and `retryable`; callers read the class.

ServiceError
├── InvalidRequest            400  the request can never be served as sent
│   ├── ContextLengthExceeded
│   ├── InvalidGrammar
│   ├── InvalidPrompt
│   └── UnsupportedParameter
├── InvalidApiKey             401
├── PermissionDenied          403
├── ModelNotFound             404
├── JobNotFound               404
├── PreviousResponseNotFound  404
├── ItemNotFound              404
├── FileMissing               404
├── BatchNotFound             404
├── WebhookNotFound           404
├── IdempotencyKeyReused      422
├── RequestTooLarge           413
├── UnsupportedMediaType      415
├── RangeNotSatisfiable       416
├── RequestTimeout            408
├── HeadersTooLarge           431
├── InsufficientQuota         429  no retry helps
│   ├── BatchQuotaExceeded
│   └── StorageQuotaExceeded
├── RateLimitExceeded         429
│   ├── TokenLimitExceeded
│   └── TokenLimitTooLow           no retry helps
├── StreamExpired             410
├── JobCancelled              409  while its client waited
├── EngineFailed                   ends a job
├── WorkerLost                     ends a job
├── DeadlineExceeded               ends a job
├── ServiceUnavailable        503
│   └── ModelUnavailable           no worker can serve it
├── MethodNotImplemented      501
├── HttpVersionUnsupported    505
└── InternalError             500

HTTP status codes stand in api/errors.py alone; they are named here only to place each class.
"""

from __future__ import annotations

from typing import ClassVar


class ServiceError(Exception):
    """Something went wrong that has a name on the wire."""

    code: ClassVar[str] = "server_error"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str | None = None, *, param: str | None = None) -> None:
        self.message = message or str(type(self).__doc__)
        self.param = param
        self.headers: dict[str, str] = {}  # of the answer, beside those its class brings
        super().__init__(self.message)


class InvalidRequest(ServiceError):
    """The request is invalid."""

    code = "invalid_request"


class ContextLengthExceeded(InvalidRequest):
    """The prompt and the requested output don't fit into the model's context."""

    code = "context_length_exceeded"


class InvalidGrammar(InvalidRequest):
    """The answer can't be given this form."""

    code = "invalid_grammar"


class InvalidPrompt(InvalidRequest):
    """The prompt can't be used."""

    code = "invalid_prompt"


class UnsupportedParameter(InvalidRequest):
    """This parameter is not supported."""

    code = "unsupported_parameter"


class InvalidApiKey(ServiceError):
    """Incorrect API key provided."""

    code = "invalid_api_key"


class PermissionDenied(ServiceError):
    """This API key may not do that."""

    code = "permission_denied"


class ModelNotFound(ServiceError):
    """The model does not exist or you do not have access to it."""

    code = "model_not_found"


class JobNotFound(ServiceError):
    """No job with this id."""

    code = "job_not_found"


class FileMissing(ServiceError):
    """No file with this id."""

    code = "file_not_found"


class PreviousResponseNotFound(ServiceError):
    """The previous response doesn't exist, or was not stored."""

    code = "previous_response_not_found"


class ItemNotFound(ServiceError):
    """No item with this id, or its response was not stored."""

    code = "item_not_found"


class BatchNotFound(ServiceError):
    """No batch with this id."""

    code = "batch_not_found"


class WebhookNotFound(ServiceError):
    """No webhook endpoint or delivery with this id."""

    code = "webhook_not_found"


class IdempotencyKeyReused(ServiceError):
    """This Idempotency-Key was used with a different request."""

    code = "idempotency_key_reused"


class RequestTooLarge(ServiceError):
    """The request body is too large."""

    code = "request_too_large"


class RequestTimeout(ServiceError):
    """The request took too long to arrive."""

    code = "request_timeout"
    retryable = True


class HeadersTooLarge(ServiceError):
    """The request's headers are too large."""

    code = "headers_too_large"


class UnsupportedMediaType(ServiceError):
    """The body has a media type or a coding that is not supported here."""

    code = "unsupported_media_type"


class RangeNotSatisfiable(ServiceError):
    """The file has no bytes in this range."""

    code = "range_not_satisfiable"


class InsufficientQuota(ServiceError):
    """Your credit doesn't cover this request."""

    code = "insufficient_quota"


class StorageQuotaExceeded(InsufficientQuota):
    """Your files take all the storage you have. Delete some."""

    code = "storage_quota_exceeded"


class BatchQuotaExceeded(InsufficientQuota):
    """You have as many batches as you may. Wait for one to end, or cancel one."""

    code = "batch_quota_exceeded"


class RateLimitExceeded(ServiceError):
    """Too many requests."""

    code = "rate_limit_exceeded"
    retryable = True


class TokenLimitExceeded(RateLimitExceeded):
    """Too many tokens."""


class TokenLimitTooLow(RateLimitExceeded):
    """The request asks for more tokens than a minute has."""

    retryable = False


class StreamExpired(ServiceError):
    """The events of this job are no longer kept."""

    code = "stream_expired"


class JobCancelled(ServiceError):
    """The job was cancelled before it produced anything."""

    code = "cancelled"


class EngineFailed(ServiceError):
    """The engine failed on this request."""

    code = "engine_error"
    retryable = True


class WorkerLost(ServiceError):
    """The workers running this job were lost."""

    code = "worker_lost"
    retryable = True


class DeadlineExceeded(ServiceError):
    """The job's deadline passed before it could start."""

    code = "deadline_exceeded"
    retryable = True


class ServiceUnavailable(ServiceError):
    """The service can't take requests at the moment."""

    code = "service_unavailable"
    retryable = True


class ModelUnavailable(ServiceUnavailable):
    """The model can't be served at present."""

    code = "model_unavailable"
    retryable = False


class MethodNotImplemented(ServiceError):
    """This server doesn't know that method."""

    code = "not_implemented"


class HttpVersionUnsupported(ServiceError):
    """This server speaks HTTP/1.1 and HTTP/1.0."""

    code = "http_version_not_supported"


class InternalError(ServiceError):
    """The server had an error while processing your request."""

    code = "server_error"
    retryable = True
