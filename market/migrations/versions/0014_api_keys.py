"""API keys, and what the jobs of each have cost by day."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"

AMOUNT = sa.Numeric(precision=38, scale=18)
INSTANT = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.create_table(
        "api_keys",
        sa.Column("key_id", sa.String(length=40), nullable=False),
        sa.Column("wallet_address", sa.String(length=42), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("key_hash", sa.LargeBinary(), nullable=False),
        sa.Column("hint", sa.String(length=40), nullable=False),
        sa.Column("scopes", sa.ARRAY(sa.String(length=20)), nullable=False),
        sa.Column("models", sa.ARRAY(sa.String(length=255)), nullable=True),
        sa.Column("limit_day_far", AMOUNT, nullable=True),
        sa.Column("limit_month_far", AMOUNT, nullable=True),
        sa.Column("limit_total_far", AMOUNT, nullable=True),
        sa.Column("generations_per_minute", sa.Integer(), nullable=True),
        sa.Column("created_at", INSTANT, server_default=sa.text("now()"), nullable=False),
        sa.Column("expires_at", INSTANT, nullable=True),
        sa.Column("last_used_at", INSTANT, nullable=True),
        sa.Column("revoked_at", INSTANT, nullable=True),
        sa.PrimaryKeyConstraint("key_id", name=op.f("pk_api_keys")),
        sa.UniqueConstraint("key_hash", name=op.f("uq_api_keys_key_hash")),
        sa.CheckConstraint(
            "least(limit_day_far, limit_month_far, limit_total_far) >= 0",
            name="check_key_limits_not_negative",
        ),
    )
    op.create_index("idx_api_keys_wallet", "api_keys", ["wallet_address", "created_at"])
    op.create_table(
        "key_spending",
        sa.Column("key_id", sa.String(length=40), nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("committed", AMOUNT, nullable=False),
        sa.ForeignKeyConstraint(
            ["key_id"], ["api_keys.key_id"], name=op.f("fk_key_spending_key_id")
        ),
        sa.PrimaryKeyConstraint("key_id", "day", name=op.f("pk_key_spending")),
        sa.CheckConstraint("committed >= 0", name="check_key_spending_not_negative"),
    )
    op.add_column("inference_sessions", sa.Column("api_key_id", sa.String(length=40)))
    # Every row so far has none, so that nothing has to be looked through.
    op.create_foreign_key(
        op.f("fk_sessions_api_key"), "inference_sessions", "api_keys", ["api_key_id"], ["key_id"]
    )
