"""Errors that any domain raises: invalid request, forbidden, rate limited, unavailable."""

from mesh.errors import MeshError


class InvalidRequest(MeshError):
    """A field of the request is wrong; ``code`` names the field and the reason. ``param``: where
    the field is; none if that is not one place."""

    code = "invalid_request"
    status = 422
    title = "Invalid request"

    def __init__(self, detail: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(detail)
        self.param = param
        if code is not None:
            self.code = code


class Forbidden(MeshError):
    code = "forbidden"
    status = 403
    title = "Forbidden"


class RateLimited(MeshError):
    """``limit``: the name of the rate limit that was met, where it has one."""

    code = "rate_limited"
    status = 429
    title = "Too many requests"

    def __init__(
        self, detail: str, *, retry_after: int | None = None, limit: str | None = None
    ) -> None:
        super().__init__(detail, retry_after=retry_after)
        self.limit = limit

    def problem(self) -> dict[str, object]:
        named = {} if self.limit is None else {"limit": self.limit}
        return super().problem() | named


class Unavailable(MeshError):
    code = "unavailable"
    status = 503
    title = "Unavailable"
