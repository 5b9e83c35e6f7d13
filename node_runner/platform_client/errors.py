"""Why the platform did not do what a node or its owner asked for.

::

    PlatformError
    ├── PlatformUnreachable   no answer now, or somebody else's: worth another try
    ├── PlatformRefused       the platform says no, and why
    ├── NodeNotRegistered     to a heartbeat: the platform does not know the node
    └── NodeSuperseded        to a heartbeat: another process is the node now
"""

import random
from collections.abc import Mapping
from typing import Any

RETRY_DELAY = 1.0
"""Seconds before another try, by the half more or less: so that a platform that comes back does not
meet all its nodes at once."""


class PlatformError(Exception):
    """The platform did not do what was asked; the message says why."""


class PlatformUnreachable(PlatformError):
    """No answer, an outage or a rate limit, or an answer that is not the platform's: worth another
    try.

    ``retry_after``: seconds that the platform asked to wait, 0 if it did not.
    """

    def __init__(self, message: str, *, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after

    def retry_delay(self) -> float:
        """Seconds before another try."""
        return self.retry_after + RETRY_DELAY * random.uniform(0.5, 1.5)


class PlatformRefused(PlatformError):
    """The platform refused. ``code`` is its stable name for the reason, ``status`` that of HTTP,
    ``document`` the whole problem document."""

    def __init__(self, document: Mapping[str, Any], *, status: int) -> None:
        super().__init__(f"{document['detail']} ({document['code']})")
        self.code = str(document["code"])
        self.document = document
        self.status = status


class NodeNotRegistered(PlatformError):
    """The platform knows neither the node nor its token any more: register again."""


class NodeSuperseded(PlatformError):
    """The node has registered again: another process is it now, and this one has to end."""
