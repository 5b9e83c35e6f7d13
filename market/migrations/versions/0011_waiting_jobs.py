"""Jobs that wait for a route hold no lease, and jobs in flight are counted by wallet."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.add_column("inference_sessions", sa.Column("waiting_since", sa.DateTime(timezone=True)))
    op.add_column("inference_sessions", sa.Column("waiting_state", JSONB))
    op.create_index(
        "idx_sessions_in_flight",
        "inference_sessions",
        ["user_wallet", "model_id"],
        postgresql_where=sa.text("status IN ('pending', 'active')"),
    )
