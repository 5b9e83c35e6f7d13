"""How long a request's body may be: nothing, but for the routes that take one."""

from collections.abc import Iterable, Mapping

from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.types import Scope

SMALL_BODY_BYTES = 2**14
"""More than a registration that lists all of its layers, or a login."""

WITH_BODY = frozenset({"POST", "PUT", "PATCH"})


class BodySizes:
    """By method and path, as the routes have them."""

    def __init__(self, routers: Iterable[APIRouter], small: int, large: Mapping[str, int]) -> None:
        """
        Args:
            routers: All routes that take a body.
            small: Bytes of a body.
            large: Those of the routes that take other bodies, by path.
        """
        self._routes = [
            ((route.methods or set()) & WITH_BODY, route.path_regex)
            for router in routers
            for route in router.routes
            if isinstance(route, APIRoute)
        ]
        self._small = small
        self._large = large

    def of(self, scope: Scope) -> int:
        """Bytes at most."""
        method, path = scope["method"], scope["path"]
        if method not in WITH_BODY:
            return 0
        methods = [methods for methods, regex in self._routes if regex.match(path)]
        if methods and not any(method in each for each in methods):
            return 0
        return self._large.get(path, self._small)  # also where there is nothing: that is told
