"""Moves of nodes to other spans, and who may be moved."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.create_table(
        "placement_moves",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("model_id", sa.String(length=255), nullable=False),
        sa.Column("changes", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("steps_before", sa.Float(), nullable=False),
        sa.Column("steps_after", sa.Float(), nullable=False),
        sa.Column("load_seconds", sa.Float(), nullable=False),
        sa.Column("state", sa.String(length=20), server_default="proposed", nullable=False),
        sa.Column("reason", sa.String(length=100), nullable=True),
        sa.Column(
            "proposed_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "state IN ('proposed', 'loading', 'switched', 'failed', 'expired')",
            name=op.f("check_move_state"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_placement_moves")),
    )
    op.create_index(
        "uq_moves_under_way",
        "placement_moves",
        ["model_id"],
        unique=True,
        postgresql_where=sa.text("state IN ('proposed', 'loading')"),
    )
    op.create_index("idx_moves_model", "placement_moves", ["model_id", "proposed_at"])
    op.add_column(
        "node_registry",
        sa.Column("placeable", sa.Boolean(), server_default="false", nullable=False),
    )
    op.create_index("idx_route_hops_wallet", "route_hops", ["wallet_address"])
