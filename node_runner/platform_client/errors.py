"""Unreachable, refused, forgotten, superseded."""

from node_runner.platform_client.registration import PlatformError


class PlatformRefused(PlatformError):
    """The platform answered with an error. ``code`` is its stable name for it."""

    def __init__(self, detail: str, *, code: str, status: int) -> None:
        super().__init__(detail)
        self.code = code
        self.status = status
