"""The application: `uvicorn --factory api.app:create_app`."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from api import problems
from api.routes import auth, discovery, generation, health, models, nodes, receipts
from api.services import open_services
from mesh import log
from mesh.settings import Settings


def create_app(settings: Settings | None = None) -> FastAPI:
    """The gateway over the given settings, or those of the environment."""
    chosen = settings or Settings()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        log.configure(json=chosen.log_json)
        async with open_services(chosen) as services:
            app.state.services = services
            yield

    app = FastAPI(
        title="Far Mesh",
        summary="Distributed LLM inference, paid in $FAR.",
        version="0.1.0",
        lifespan=lifespan,
        responses=problems.RESPONSES,
    )
    problems.install(app, max_body_bytes=chosen.limits.max_body_bytes)
    for routes in (generation, receipts, auth, nodes, models, discovery, health):
        app.include_router(routes.router)
    return app
