"""Errors of settlement: usage unproven, totals that differ, paused."""

from market.chain.errors import ChainError
from mesh.errors import MeshError


class UsageUnproven(MeshError):
    """The stored usage does not give the root that was settled."""

    code = "usage_unproven"
    title = "Usage unproven"


class SettlementMismatch(ChainError):
    """Totals differ that have to be equal."""

    code = "settlement_mismatch"


class SettlementPaused(ChainError):
    """Nothing is settled until an operator has looked."""

    code = "settlement_paused"
