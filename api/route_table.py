"""The routes of an application, made once a process."""

from collections.abc import Sequence
from functools import cached_property

from fastapi import APIRouter, FastAPI
from starlette.routing import BaseRoute

from api.http import problem_details


class RouteTable:
    """Routers, and their routes.

    FastAPI analyses a route anew for each application that includes its router, which takes about
    ten milliseconds. All applications that have the same table share its routes.
    """

    def __init__(self, *routers: APIRouter) -> None:
        self.routers = routers

    @cached_property
    def routes(self) -> Sequence[BaseRoute]:
        """With the errors that each may answer, for the OpenAPI document."""
        including = FastAPI(openapi_url=None, responses=problem_details.RESPONSES)
        for router in self.routers:
            including.include_router(router)
        return including.routes
