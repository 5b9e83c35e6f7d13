"""Machines that a wallet has let in, and the nodes that each has registered."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.create_table(
        "machines",
        sa.Column("machine_id", sa.String(length=40), nullable=False),
        sa.Column("wallet_address", sa.String(length=42), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("machine_id", name=op.f("pk_machines")),
    )
    op.create_index("idx_machines_wallet", "machines", ["wallet_address", "created_at"])
    op.add_column("node_registry", sa.Column("machine_id", sa.String(length=40), nullable=True))
    op.create_foreign_key(
        op.f("fk_node_registry_machine_id"),
        "node_registry",
        "machines",
        ["machine_id"],
        ["machine_id"],
    )
    op.create_index("idx_registry_machine", "node_registry", ["machine_id"])
