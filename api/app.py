"""The ASGI application: `uvicorn api.app:app`. Importing it builds the app and connects nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from api import errors
from api.middleware import BodyLimitMiddleware, RequestMiddleware
    for module in _ROUTES:
        app.include_router(module.router)
    errors.install(app)
    app.add_middleware(BodyLimitMiddleware)
    app.add_middleware(RequestMiddleware)  # added last, so outermost
    return app


app = create_app()
