"""Errors of the ledger: balance, spending cap or an API key's limit too low."""

from mesh.errors import MeshError


class InsufficientBalance(MeshError):
    code = "insufficient_balance"
    status = 402
    title = "Insufficient balance"


class SpendingCapExceeded(MeshError):
    code = "spending_cap_exceeded"
    status = 402
    title = "Spending cap exceeded"


class KeyLimitReached(MeshError):
    """``period``: whose limit leaves too little: ``day``, ``month`` or ``total``."""

    code = "key_limit_reached"
    status = 402
    title = "API key's limit reached"
    retry_useless = True

    def __init__(self, detail: str, *, period: str) -> None:
        super().__init__(detail)
        self.period = period

    def problem(self) -> dict[str, object]:
        return super().problem() | {"limit": self.period}
