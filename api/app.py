"""The ASGI application: `uvicorn api.app:app`. Importing it builds the app and connects nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from api import errors, metrics, openapi
from api.cors import CorsSettings, with_cors
from api.door import DoorMiddleware
from api.head_requests import HeadMiddleware
from api.middleware import BodyLimitMiddleware, RequestMiddleware
from api.routes import (
    batches,
    chat_completions,
    completions,
    estimate,
    events,
    files,
    health,
    jobs,
    models,
    organization,
    responses,
    usage,
    webhook_deliveries,
    webhook_endpoints,
)
from api.schemas.batches import CreateBatch
from api.schemas.chat import CreateChatCompletion
from api.schemas.completions import CreateCompletion
from api.schemas.jobs import CreateJob
from api.schemas.objects import UploadBody
from api.schemas.reports import EstimateBody
from api.schemas.responses import CountInput, CreateResponse
from api.schemas.webhooks import (
    CreateWebhookEndpoint,
    RotateSecret,
    SampleEvent,
    UpdateWebhookEndpoint,
)
from api.services import open_services
from api.settings import ApiSettings
from tasks.logs import configure_logs
from tasks.metrics import serve_metrics

_ROUTES = (
    chat_completions,
    completions,
    responses,
    jobs,
    events,
    files,
    batches,
    models,
    estimate,
    usage,
    organization,
    webhook_endpoints,
    webhook_deliveries,
    health,
)

_BODIES = (
    CreateJob,
    CreateChatCompletion,
    CreateBatch,
    CreateCompletion,
    CreateResponse,
    CountInput,
    EstimateBody,
    UploadBody,
    CreateWebhookEndpoint,
    UpdateWebhookEndpoint,
    RotateSecret,
    SampleEvent,
)


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    configure_logs()
    serve_metrics(metrics.registry)
    bound = getattr(app.state, "max_connections", None)
    async with open_services(ApiSettings(), max_connections=bound) as services:
        app.state.services = services
        yield


def create_app() -> FastAPI:
    """A new application. Each has its own connections, opened by its lifespan."""
    # The interactive pages load scripts from elsewhere, so they stay off.
    app = FastAPI(
        title="Millrace",
        lifespan=_lifespan,
        docs_url=None,
        redoc_url=None,
        separate_input_output_schemas=False,
    )
    for module in _ROUTES:
        app.include_router(module.router)
    app.state.routes = [route for module in _ROUTES for route in module.router.routes]
    errors.install(app)
    openapi.install(app, _BODIES)
    app.add_middleware(BodyLimitMiddleware)
    app.add_middleware(DoorMiddleware)
    app.add_middleware(RequestMiddleware)
    app.add_middleware(HeadMiddleware)
    # Added last, so outermost.
    app.add_middleware(with_cors, origins=CorsSettings().cors_origins)
    return app


app = create_app()
