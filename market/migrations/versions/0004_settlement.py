"""Settlement that can replace transactions, leave users out, and pause."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

STATUSES = "status IN ('closed', 'signed', 'mined', 'confirmed', 'replaced')"

REFUSE_OPEN_BATCHES = """
DO $$ BEGIN
    IF EXISTS (SELECT FROM settlements WHERE status NOT IN ('confirmed', 'replaced')) THEN
        RAISE EXCEPTION 'a batch is not confirmed: let settlement finish it, then migrate';
    END IF;
END $$
"""


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    # The first contract and the final one take different batches.
    op.execute(REFUSE_OPEN_BATCHES)
    op.add_column("inference_sessions", sa.Column("withheld_until", sa.DateTime(timezone=True)))
    op.add_column("inference_sessions", sa.Column("withheld_reason", sa.String(length=100)))

    op.add_column("settlements", sa.Column("fee_recipient", sa.String(length=42)))
    op.add_column("settlements", sa.Column("usage_root", sa.String(length=66)))
    op.add_column(
        "settlements", sa.Column("failures", sa.Integer(), server_default="0", nullable=False)
    )
    op.drop_column("settlements", "nonce")
    op.drop_column("settlements", "raw_transaction")
    op.drop_constraint("check_settlement_status", "settlements", type_="check")
    op.create_check_constraint(op.f("check_settlement_status"), "settlements", STATUSES)
    op.drop_index("uq_settlements_open", table_name="settlements")
    op.create_index(
        "uq_settlements_open",
        "settlements",
        [sa.literal_column("(true)")],
        unique=True,
        postgresql_where=sa.text("status NOT IN ('confirmed', 'replaced')"),
    )

    op.create_table(
        "usage_trees",
        sa.Column("settlement_id", sa.String(length=66), nullable=False),
        sa.Column("nodes", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["settlement_id"], ["settlements.id"], name=op.f("fk_usage_trees_settlement_id")
        ),
        sa.PrimaryKeyConstraint("settlement_id", name=op.f("pk_usage_trees")),
    )
    # Hashes do not get smaller.
    op.execute("ALTER TABLE usage_trees ALTER COLUMN nodes SET STORAGE EXTERNAL")

    op.create_table(
        "settlement_transactions",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("settlement_id", sa.String(length=66), nullable=False),
        sa.Column("chain_id", sa.BigInteger(), nullable=False),
        sa.Column("account", sa.String(length=42), nullable=False),
        sa.Column("nonce", sa.BigInteger(), nullable=False),
        sa.Column("hash", sa.String(length=66), nullable=False),
        sa.Column("raw", sa.LargeBinary(), nullable=False),
        sa.Column("gas", sa.BigInteger(), nullable=False),
        sa.Column("max_fee_wei", sa.Numeric(precision=38, scale=0), nullable=False),
        sa.Column("priority_fee_wei", sa.Numeric(precision=38, scale=0), nullable=True),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("sent_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("reverted_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["settlement_id"],
            ["settlements.id"],
            name=op.f("fk_settlement_transactions_settlement_id"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_settlement_transactions")),
        sa.UniqueConstraint("hash", name=op.f("uq_settlement_transactions_hash")),
    )
    op.create_index(
        "idx_settlement_transactions_settlement", "settlement_transactions", ["settlement_id"]
    )
    op.create_index(
        "idx_settlement_transactions_nonce",
        "settlement_transactions",
        ["chain_id", "account", "nonce"],
    )
    op.create_table(
        "chain_nonces",
        sa.Column("chain_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("account", sa.String(length=42), nullable=False),
        sa.Column("next_nonce", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("chain_id", "account", name=op.f("pk_chain_nonces")),
    )
    op.create_table(
        "settlement_pauses",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("reason", sa.String(length=50), nullable=False),
        sa.Column("detail", sa.String(), nullable=False),
        sa.Column(
            "began_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_settlement_pauses")),
    )
    op.create_index(
        "uq_settlement_pauses_in_force",
        "settlement_pauses",
        [sa.literal_column("(true)")],
        unique=True,
        postgresql_where=sa.text("ended_at IS NULL"),
    )
