"""How long a request's body may be: nothing, but for the methods that take one."""

from collections.abc import Mapping

from starlette.types import Scope

SMALL_BODY_BYTES = 2**14
"""More than a registration that lists all of its layers, or a login."""

WITH_BODY = frozenset({"POST", "PUT", "PATCH"})


class BodySizes:
    """By method and path."""

    def __init__(self, small: int, large: Mapping[str, int]) -> None:
        """
        Args:
            small: Bytes of a body.
            large: Those of the routes that take other bodies, by path.
        """
        self._small = small
        self._large = large

    def of(self, scope: Scope) -> int:
        """Bytes at most."""
        if scope["method"] not in WITH_BODY:
            return 0
        return self._large.get(scope["path"], self._small)  # also where there is nothing
