"""Server-rendered pages. They load nothing from other hosts and hold no inline script."""

from pathlib import Path

from fastapi import FastAPI
from starlette.staticfiles import StaticFiles

from api.web import device_link

STATIC = Path(__file__).parent / "static"


def install(app: FastAPI) -> None:
    """Add the pages, and the files that they load."""
    app.include_router(device_link.router)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
