"""Every module of tables, imported so that Alembic sees the whole schema."""

from market import outbox
from market.db import Base
from market.escrow import tables as escrow
from market.identity import tables as identity
from market.jobs import tables as jobs
from market.ledger import tables as ledger
from market.nodes import tables as nodes
from market.placement import tables as placement
from market.settlement import tables as settlement

METADATA = Base.metadata

__all__ = [
    "METADATA",
    "escrow",
    "identity",
    "jobs",
    "ledger",
    "nodes",
    "outbox",
    "placement",
    "settlement",
]
