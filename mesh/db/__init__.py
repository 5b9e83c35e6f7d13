"""Tables (SQLAlchemy) and the one way to open a transaction.

The column names of ``inference_sessions``, ``node_contributions`` and ``node_registry`` are the
specification's (§3.4); amounts are NUMERIC(38,18). Migrations in ``mesh/migrations`` build the
same schema, and a test compares the two.
"""

from mesh.db.base import AMOUNT, INSTANT, WALLET, Base, Sessions, connect
from mesh.db.chain import (
    ChainBlock,
    ChainCursor,
    ChainEvent,
    ChainNonce,
    Settlement,
    SettlementPause,
    SettlementTransaction,
    StoredTree,
)
from mesh.db.jobs import InferenceSession, NodeContribution, NodeRegistry, Outbox, RouteHop
from mesh.db.ledger import LedgerAccount, LedgerEntry, LedgerPart, LedgerTransaction, SpendingCap
from mesh.db.machines import Machine
from mesh.db.placement import PlacementMove

__all__ = [
    "AMOUNT",
    "INSTANT",
    "WALLET",
    "Base",
    "ChainBlock",
    "ChainCursor",
    "ChainEvent",
    "ChainNonce",
    "InferenceSession",
    "LedgerAccount",
    "LedgerEntry",
    "LedgerPart",
    "LedgerTransaction",
    "Machine",
    "NodeContribution",
    "NodeRegistry",
    "Outbox",
    "PlacementMove",
    "RouteHop",
    "Sessions",
    "Settlement",
    "SettlementPause",
    "SettlementTransaction",
    "SpendingCap",
    "StoredTree",
    "connect",
]
