"""Totals differ, paused, unproven."""

from market.chain.errors import ChainError
from mesh.errors import MeshError


class UsageUnproven(MeshError):
    code = "usage_unproven"
    title = "Usage unproven"


class SettlementMismatch(ChainError):
    code = "settlement_mismatch"


class SettlementPaused(ChainError):
    code = "settlement_paused"
