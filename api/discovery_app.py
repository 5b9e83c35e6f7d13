"""The discovery service by itself: `uvicorn --factory api.discovery_app:create_app`.

Logins, registrations, heartbeats and who serves what: a machine that only keeps the DHT directory
serves this. What nodes need besides (relay, weights, probes, machines) is the gateway's.
"""

from fastapi import FastAPI

from api.app import assemble
from api.route_table import RouteTable
from api.routes import auth, health, nodes
from api.routes.discovery import dht
from api.routes.discovery import nodes as discovery_nodes
from api.routes.inference import models
from market.settings import Settings

ROUTES = RouteTable(
    auth.router,
    nodes.router,
    discovery_nodes.router,
    discovery_nodes.service_router,
    models.router,
    dht.router,
    health.router,
)


def create_app(settings: Settings | None = None) -> FastAPI:
    """The discovery service over the given settings, or those of the environment."""
    return assemble(
        settings or Settings(),
        ROUTES,
        title="Far Discovery Service",
        summary="Who serves which layers of which model.",
    )
