"""Batches know their contract, and may come back from being confirmed."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.add_column("settlements", sa.Column("contract", sa.String(length=42)))
    op.add_column("settlements", sa.Column("undone_at", sa.DateTime(timezone=True)))
    op.drop_index("uq_settlements_open", table_name="settlements")
    op.create_index(
        "uq_settlements_open",
        "settlements",
        [sa.literal_column("(true)")],
        unique=True,
        postgresql_where=sa.text("status NOT IN ('confirmed', 'replaced') AND undone_at IS NULL"),
    )
