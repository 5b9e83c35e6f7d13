"""The contract would revert."""

from market.chain.errors import ChainError


class SettlementRefused(ChainError):
    """``reason`` names the contract's error; ``user`` is whose money falls short, and ``left`` what
    a limit has left, in base units, where the error tells."""

    code = "settlement_refused"

    def __init__(
        self, detail: str, *, reason: str, user: str | None = None, left: int | None = None
    ) -> None:
        super().__init__(detail)
        self.reason = reason
        self.user = user
        self.left = left
