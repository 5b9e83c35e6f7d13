"""The discovery service's application: `uvicorn --factory api.discovery_app:create_app`."""

from fastapi import FastAPI

from api import app
from mesh.settings import Settings


def create_app(settings: Settings | None = None) -> FastAPI:
    """Everything that nodes ask of the platform, by the gateway's application."""
    return app.create_app(settings)
