"""The application: `uvicorn --factory api.app:create_app`."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import APIRouter, FastAPI

from api import problems, web
from api.routes import (
    auth,
    billing,
    discovery,
    generation,
    health,
    machines,
    models,
    nodes,
    phonebook,
    probe,
    provider,
    receipts,
    relay,
)
from api.services import open_services
from market.settings import Settings
from mesh import log
from mesh.relay import EXCHANGE_PATH


def create_app(settings: Settings | None = None) -> FastAPI:
    """The gateway over the given settings, or those of the environment."""
    app = assemble(
        settings or Settings(),
        generation.router,
        receipts.router,
        billing.router,
        auth.router,
        machines.router,
        nodes.router,
        models.router,
        relay.router,
        provider.router,
        discovery.router,
        discovery.service,
        phonebook.router,
        probe.router,
        health.router,
        title="Far Mesh",
        summary="Distributed LLM inference, paid in $FAR.",
    )
    web.install(app)
    return app


def assemble(settings: Settings, *routers: APIRouter, title: str, summary: str) -> FastAPI:
    """An application of these routers, with our errors and services."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        log.configure(json=settings.log_json)
        async with open_services(settings) as services:
            app.state.services = services
            yield

    app = FastAPI(
        title=title,
        summary=summary,
        version="0.1.0",
        lifespan=lifespan,
        responses=problems.RESPONSES,
    )
    problems.install(
        app,
        max_body_bytes=settings.limits.max_body_bytes,
        unlimited={EXCHANGE_PATH},  # hidden states; it reads them itself, of nodes only
    )
    for router in routers:
        app.include_router(router)
    return app
