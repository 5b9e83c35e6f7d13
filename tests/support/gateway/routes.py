"""All routes of an application, those of the routers that it includes among them."""

from collections.abc import Iterator

from fastapi import FastAPI
from starlette.routing import BaseRoute


def routes_of(app: FastAPI) -> list[BaseRoute]:
    """The routes, in the order in which they are tried. Of the application's own, our routers have
    no prefix."""
    return list(_flat(app.routes))


def _flat(routes: list[BaseRoute]) -> Iterator[BaseRoute]:
    for route in routes:
        included = getattr(route, "original_router", None)
        if included is None:
            yield route
        else:
            yield from _flat(included.routes)
