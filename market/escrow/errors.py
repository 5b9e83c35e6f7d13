"""Errors of the escrow: the contract would revert a call."""

from market.chain.errors import ChainError


class SettlementRefused(ChainError):
    """The contract would revert a batch.

    Args:
        reason: Name of the contract's error, without its prefix; ``unknown`` for other refusals.
        user: Wallet whose deposit or cap falls short, in lower case, where the error names one.
        left: What is left of a limit, in base units, where the error has it.
    """

    code = "settlement_refused"

    def __init__(
        self, detail: str, *, reason: str, user: str | None = None, left: int | None = None
    ) -> None:
        super().__init__(detail)
        self.reason = reason
        self.user = user
        self.left = left
