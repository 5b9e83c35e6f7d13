"""The tables."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.create_table(
        "chain_cursors",
        sa.Column("contract", sa.String(length=42), nullable=False),
        sa.Column("next_block", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("contract", name=op.f("pk_chain_cursors")),
    )
    op.create_table(
        "deposits",
        sa.Column("transaction_hash", sa.String(length=66), nullable=False),
        sa.Column("log_index", sa.Integer(), nullable=False),
        sa.Column("block_number", sa.BigInteger(), nullable=False),
        sa.Column("wallet_address", sa.String(length=42), nullable=False),
        sa.Column("amount_far", sa.Numeric(precision=38, scale=18), nullable=False),
        sa.Column(
            "credited_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("transaction_hash", "log_index", name=op.f("pk_deposits")),
    )
    op.create_table(
        "ledger_accounts",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("owner", sa.String(length=42), nullable=False),
        sa.Column("kind", sa.String(length=20), nullable=False),
        sa.Column(
            "balance", sa.Numeric(precision=38, scale=18), server_default="0", nullable=False
        ),
        sa.CheckConstraint(
            "balance >= 0 OR kind = 'clearing'", name=op.f("check_balance_not_negative")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ledger_accounts")),
        sa.UniqueConstraint("owner", "kind", name="uq_ledger_accounts_owner_kind"),
    )
    op.create_table(
        "ledger_transactions",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("kind", sa.String(length=20), nullable=False),
        sa.Column("reference", sa.String(length=255), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ledger_transactions")),
        sa.UniqueConstraint("kind", "reference", name="uq_ledger_transactions_ref"),
    )
    op.create_table(
        "node_registry",
        sa.Column("node_id", sa.String(length=255), nullable=False),
        sa.Column("wallet_address", sa.String(length=42), nullable=False),
        sa.Column("model_id", sa.String(length=255), nullable=False),
        sa.Column("gpu_model", sa.String(length=100), nullable=True),
        sa.Column("vram_gb", sa.Integer(), nullable=True),
        sa.Column("location", sa.String(length=100), nullable=True),
        sa.Column("public_addr", sa.String(length=255), nullable=True),
        sa.Column(
            "registered_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("last_seen", sa.DateTime(timezone=True), nullable=True),
        sa.Column("is_active", sa.Boolean(), server_default="true", nullable=False),
        sa.Column("total_tokens_served", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column(
            "total_earned_far",
            sa.Numeric(precision=38, scale=18),
            server_default="0",
            nullable=False,
        ),
        sa.Column("start_layer", sa.Integer(), nullable=False),
        sa.Column("end_layer", sa.Integer(), nullable=False),
        sa.Column("edge", sa.Boolean(), server_default="false", nullable=False),
        sa.Column("uptime_seconds", sa.Double(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("node_id", name=op.f("pk_node_registry")),
    )
    op.create_index("idx_registry_active", "node_registry", ["is_active"], unique=False)
    op.create_index("idx_registry_model", "node_registry", ["model_id"], unique=False)
    op.create_index("idx_registry_wallet", "node_registry", ["wallet_address"], unique=False)
    op.create_table(
        "outbox",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("task", sa.String(length=50), nullable=False),
        sa.Column("argument", sa.String(length=255), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("sent_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_outbox")),
    )
    op.create_index(
        "idx_outbox_unsent",
        "outbox",
        ["id"],
        unique=False,
        postgresql_where=sa.text("sent_at IS NULL"),
    )
    op.create_table(
        "settlements",
        sa.Column("id", sa.String(length=66), nullable=False),
        sa.Column("status", sa.String(length=20), server_default="closed", nullable=False),
        sa.Column("debits", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("credits", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("fee_units", sa.Numeric(precision=38, scale=0), nullable=False),
        sa.Column("nonce", sa.BigInteger(), nullable=True),
        sa.Column("raw_transaction", sa.LargeBinary(), nullable=True),
        sa.Column("transaction_hash", sa.String(length=66), nullable=True),
        sa.Column("block_number", sa.BigInteger(), nullable=True),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("confirmed_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "status IN ('closed', 'signed', 'confirmed')", name=op.f("check_settlement_status")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_settlements")),
    )
    op.create_index(
        "uq_settlements_open",
        "settlements",
        [sa.literal_column("(true)")],
        unique=True,
        postgresql_where=sa.text("status <> 'confirmed'"),
    )
    op.create_table(
        "inference_sessions",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("request_id", sa.String(length=255), nullable=False),
        sa.Column("user_wallet", sa.String(length=42), nullable=False),
        sa.Column("model_id", sa.String(length=255), nullable=False),
        sa.Column("tier", sa.String(length=20), server_default="standard", nullable=False),
        sa.Column(
            "started_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("completed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("token_count", sa.Integer(), server_default="0", nullable=False),
        sa.Column("total_cost_far", sa.Numeric(precision=38, scale=18), nullable=True),
        sa.Column("status", sa.String(length=20), server_default="pending", nullable=False),
        sa.Column("finish_reason", sa.String(length=20), nullable=True),
        sa.Column("error_code", sa.String(length=50), nullable=True),
        sa.Column("cancel_requested", sa.Boolean(), server_default="false", nullable=False),
        sa.Column("deadline_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("first_token_ms", sa.Integer(), nullable=True),
        sa.Column("latency_ms", sa.Integer(), nullable=True),
        sa.Column("prompt_tokens", sa.Integer(), nullable=False),
        sa.Column("max_tokens", sa.Integer(), nullable=False),
        sa.Column("temperature", sa.Double(), nullable=False),
        sa.Column("top_p", sa.Double(), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("request_cipher", sa.LargeBinary(), nullable=True),
        sa.Column("request_digest", sa.LargeBinary(), nullable=False),
        sa.Column("idempotency_key", sa.String(length=255), nullable=True),
        sa.Column("price_per_token_far", sa.Numeric(precision=38, scale=18), nullable=False),
        sa.Column("hold_far", sa.Numeric(precision=38, scale=18), nullable=False),
        sa.Column("fee_far", sa.Numeric(precision=38, scale=18), nullable=True),
        sa.Column("settlement_id", sa.String(length=66), nullable=True),
        sa.Column("epoch", sa.Integer(), server_default="0", nullable=False),
        sa.Column("lease_counter", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("lease_expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "status IN ('pending', 'active', 'completed', 'failed')", name=op.f("check_status")
        ),
        sa.ForeignKeyConstraint(
            ["settlement_id"], ["settlements.id"], name="fk_sessions_settlement"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_inference_sessions")),
        sa.UniqueConstraint("request_id", name=op.f("uq_inference_sessions_request_id")),
        sa.UniqueConstraint("user_wallet", "idempotency_key", name="uq_sessions_idempotency"),
    )
    op.create_index("idx_sessions_status", "inference_sessions", ["status"], unique=False)
    op.create_index(
        "idx_sessions_unsettled",
        "inference_sessions",
        ["completed_at"],
        unique=False,
        postgresql_where=sa.text("settlement_id IS NULL AND total_cost_far > 0"),
    )
    op.create_index("idx_sessions_user", "inference_sessions", ["user_wallet"], unique=False)
    op.create_table(
        "ledger_entries",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("transaction_id", sa.BigInteger(), nullable=False),
        sa.Column("account_id", sa.BigInteger(), nullable=False),
        sa.Column("amount", sa.Numeric(precision=38, scale=18), nullable=False),
        sa.ForeignKeyConstraint(
            ["account_id"], ["ledger_accounts.id"], name=op.f("fk_ledger_entries_account_id")
        ),
        sa.ForeignKeyConstraint(
            ["transaction_id"],
            ["ledger_transactions.id"],
            name=op.f("fk_ledger_entries_transaction_id"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ledger_entries")),
    )
    op.create_index("idx_ledger_entries_account", "ledger_entries", ["account_id"], unique=False)
    op.create_index(
        "idx_ledger_entries_transaction", "ledger_entries", ["transaction_id"], unique=False
    )
    op.create_table(
        "node_contributions",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("session_id", sa.Uuid(), nullable=False),
        sa.Column("node_id", sa.String(length=255), nullable=False),
        sa.Column("wallet_address", sa.String(length=42), nullable=False),
        sa.Column("tokens_contributed", sa.Integer(), nullable=False),
        sa.Column("layers", postgresql.ARRAY(sa.BigInteger()), nullable=False),
        sa.Column("payment_far", sa.Numeric(precision=38, scale=18), nullable=False),
        sa.Column("paid_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["session_id"], ["inference_sessions.id"], name=op.f("fk_node_contributions_session_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_node_contributions")),
    )
    op.create_index("idx_contributions_session", "node_contributions", ["session_id"], unique=False)
    op.create_index(
        "idx_contributions_wallet", "node_contributions", ["wallet_address"], unique=False
    )
    op.create_table(
        "route_hops",
        sa.Column("session_id", sa.Uuid(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("stage", sa.Integer(), nullable=False),
        sa.Column("node_id", sa.String(length=255), nullable=False),
        sa.Column("wallet_address", sa.String(length=42), nullable=False),
        sa.Column("start_layer", sa.Integer(), nullable=False),
        sa.Column("end_layer", sa.Integer(), nullable=False),
        sa.Column("first_token", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["session_id"], ["inference_sessions.id"], name=op.f("fk_route_hops_session_id")
        ),
        sa.PrimaryKeyConstraint("session_id", "epoch", "stage", name=op.f("pk_route_hops")),
    )
