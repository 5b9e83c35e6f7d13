"""All events of the escrow, and the blocks by which a reorg is seen."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"

# Deposits that were credited stay credited, under the reference that their posting has.
TAKE_DEPOSITS = """
INSERT INTO chain_events (
    transaction_hash, log_index, contract, block_number, block_hash, name, wallet_address,
    arguments, status, reference, seen_at
)
SELECT transaction_hash, log_index, coalesce((SELECT max(contract) FROM chain_cursors), ''),
    block_number, '', 'Deposited', wallet_address,
    jsonb_build_object('user', wallet_address, 'amount', trunc(amount_far * 1e18)::text),
    'applied', transaction_hash || ':' || log_index, credited_at
FROM deposits;
"""


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.create_table(
        "chain_events",
        sa.Column("transaction_hash", sa.String(length=66), nullable=False),
        sa.Column("log_index", sa.Integer(), nullable=False),
        sa.Column("contract", sa.String(length=42), nullable=False),
        sa.Column("block_number", sa.BigInteger(), nullable=False),
        sa.Column("block_hash", sa.String(length=66), nullable=False),
        sa.Column("name", sa.String(length=50), nullable=False),
        sa.Column("wallet_address", sa.String(length=42), nullable=True),
        sa.Column("arguments", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("status", sa.String(length=20), server_default="pending", nullable=False),
        sa.Column("reference", sa.String(length=255), nullable=True),
        sa.Column(
            "seen_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.CheckConstraint(
            "status IN ('pending', 'applied', 'reverted')", name=op.f("check_chain_event_status")
        ),
        sa.PrimaryKeyConstraint("transaction_hash", "log_index", name=op.f("pk_chain_events")),
    )
    op.create_index("idx_chain_events_block", "chain_events", ["contract", "block_number"])
    op.create_index("idx_chain_events_wallet", "chain_events", ["wallet_address", "name"])
    op.create_table(
        "chain_blocks",
        sa.Column("contract", sa.String(length=42), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("hash", sa.String(length=66), nullable=False),
        sa.PrimaryKeyConstraint("contract", "number", name=op.f("pk_chain_blocks")),
    )
    op.execute(TAKE_DEPOSITS)
    op.drop_table("deposits")
    # A wallet's usage and earnings are read page by page, in these orders.
    op.drop_index("idx_sessions_user", "inference_sessions")
    op.create_index(
        "idx_sessions_user", "inference_sessions", ["user_wallet", "completed_at", "id"]
    )
    op.drop_index("idx_contributions_wallet", "node_contributions")
    op.create_index("idx_contributions_wallet", "node_contributions", ["wallet_address", "id"])
