"""Errors of the ledger: balance or spending cap too low."""

from mesh.errors import MeshError


class InsufficientBalance(MeshError):
    code = "insufficient_balance"
    status = 402
    title = "Insufficient balance"


class SpendingCapExceeded(MeshError):
    code = "spending_cap_exceeded"
    status = 402
    title = "Spending cap exceeded"
