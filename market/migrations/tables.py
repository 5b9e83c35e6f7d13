"""Every module of tables, imported so that Alembic sees the whole schema."""

from market.db import Base
from market.identity import tables as identity
from market.jobs import tables as jobs
from market.ledger import tables as ledger
from market.placement import tables as placement
from market.settlement import tables as settlement

METADATA = Base.metadata

__all__ = ["METADATA", "identity", "jobs", "ledger", "placement", "settlement"]
