"""What ends a supervision: the generation is over, has to wait, or the lease is lost."""

from market.jobs.tables import EndReason


class GenerationOver(Exception):
    """The generation has ended: ``reason``, and for a failure its ``code``. ``tokens``: without as
    many, it has not ended; 0 where it ends with whatever can be read."""

    def __init__(self, reason: EndReason, code: str | None = None, *, tokens: int = 0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.code = code
        self.tokens = tokens


class NoRouteNow(Exception):
    """No route was found in a short time: the generation waits for one without a supervisor."""


class LeaseLost(Exception):
    """Another supervisor has taken the generation over."""
