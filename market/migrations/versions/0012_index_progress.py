"""Until when the chain is indexed, and indexes that find a wallet's newest events."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"

INDEXES = {
    "idx_chain_events_block": ["contract", "block_number", "log_index"],
    "idx_chain_events_wallet": ["wallet_address", "name", "block_number", "log_index"],
}


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.add_column(
        "chain_cursors",
        sa.Column(
            "indexed_until",
            sa.DateTime(timezone=True),
            server_default=sa.func.now(),
            nullable=False,
        ),
    )
    for name, columns in INDEXES.items():
        op.drop_index(name, "chain_events")
        op.create_index(name, "chain_events", columns)
