"""The application: `uvicorn --factory api.app:create_app`."""

import gc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Scope

from api import openapi_document, web
from api.http import problem_details
from api.http.caller_address import SITE_BITS, UNKNOWN, address_of, network_of
from api.http.services import open_services
from api.middleware.allowed_methods import AllowedMethods
from api.middleware.body_limit import BodyLimit
from api.middleware.body_sizes import SMALL_BODY_BYTES, BodySizes
from api.middleware.cross_origin import allow_origins
from api.middleware.rate_limit_headers import RateLimitHeaders
from api.middleware.request_ids import RequestIds
from api.middleware.request_limit import RequestLimit
from api.route_table import RouteTable
from api.routes import api_keys, auth, billing, health, machines, nodes, provider, relay, weights
from api.routes.discovery import dht, probe
from api.routes.discovery import nodes as discovery_nodes
from api.routes.inference import generate, jobs, models, receipts
from api.routes.openai import chat_completions, completions, responses
from api.routes.openai import models as openai_models
from api.server.transfers import TransferBudget
from market.settings import Settings
from mesh import __version__, log
from mesh.relay import EXCHANGE_PATH

ROUTES = RouteTable(
    generate.router,
    jobs.router,
    receipts.router,
    models.router,
    chat_completions.router,
    completions.router,
    responses.router,
    openai_models.router,
    billing.router,
    auth.router,
    api_keys.router,
    api_keys.own_router,
    machines.router,
    nodes.router,
    nodes.status_router,
    weights.router,
    relay.router,
    provider.router,
    discovery_nodes.router,
    discovery_nodes.service_router,
    dht.router,
    probe.router,
    health.router,
)


GENERATION_PATHS = frozenset(
    {generate.PATH, chat_completions.PATH, completions.PATH, responses.PATH}
)
"""Where bodies may be as long as a prompt, or a chat."""


def create_app(settings: Settings | None = None) -> FastAPI:
    """The gateway over the given settings, or those of the environment."""
    app = assemble(
        settings or Settings(),
        ROUTES,
        title="Far Mesh",
        summary="Distributed LLM inference, paid in $FAR.",
    )
    web.install(app)
    if settings is None:  # the process's own application: what is loaded by now stays loaded
        gc.collect()
        gc.freeze()  # a collection that looks at all of it takes a quarter of a second
    return app


class Application(FastAPI):
    """Of which a part stands outside of all that `add_middleware` adds, and so of the answers to
    errors that nobody expected."""

    def __init__(self, *, outermost: Callable[[ASGIApp], ASGIApp], **options: Any) -> None:
        super().__init__(**options)
        self._outermost = outermost

    def build_middleware_stack(self) -> ASGIApp:
        return self._outermost(super().build_middleware_stack())


def assemble(settings: Settings, table: RouteTable, *, title: str, summary: str) -> FastAPI:
    """An application with these routes, our errors and services."""

    transfers = TransferBudget(settings.limits)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        log.configure(json=settings.log_json)
        async with open_services(settings, transfers) as services:
            app.state.services = services
            yield

    def owner_of(scope: Scope) -> str:
        address = address_of(HTTPConnection(scope), settings.limits)
        return UNKNOWN if address is None else network_of(address, SITE_BITS)

    def outermost(app: ASGIApp) -> ASGIApp:
        return RequestIds(allow_origins(app, settings.cors_origins))

    app = Application(
        outermost=outermost,
        title=title,
        summary=summary,
        version=__version__,
        lifespan=lifespan,
    )
    problem_details.install(app)
    openapi_document.install(app)
    large = settings.limits.max_body_bytes
    sizes = BodySizes(
        min(SMALL_BODY_BYTES, large), dict.fromkeys((*GENERATION_PATHS, probe.PATH), large)
    )
    app.add_middleware(
        BodyLimit,
        sizes=sizes,
        unlimited={EXCHANGE_PATH},  # hidden states; it reads them itself, of nodes only
        never_parsed={probe.PATH},
        transfers=transfers,
        owner_of=owner_of,
    )
    app.add_middleware(
        RequestLimit,
        sizes=sizes,
        uncounted={EXCHANGE_PATH, *health.PATHS},
        with_token=GENERATION_PATHS if generate.router in table.routers else (),
    )
    app.add_middleware(RateLimitHeaders)
    app.add_middleware(AllowedMethods)
    app.router.routes.extend(table.routes)
    return app
