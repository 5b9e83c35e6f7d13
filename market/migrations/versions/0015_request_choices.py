"""Several generations a request, requests found by their digest, and how a job was computed."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"

UNIQUE = "uq_sessions_idempotency"


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    table = "inference_sessions"
    for name in ("accepted_draft_tokens", "rejected_draft_tokens"):
        op.add_column(table, sa.Column(name, sa.Integer(), nullable=False, server_default="0"))
    op.add_column(table, sa.Column("batch_invariant", sa.Boolean()))
    op.add_column(table, sa.Column("quantization", sa.String(100)))
    op.add_column(table, sa.Column("choice", sa.SmallInteger(), nullable=False, server_default="0"))
    op.drop_constraint(UNIQUE, table)
    op.create_unique_constraint(UNIQUE, table, ["user_wallet", "idempotency_key", "choice"])
    op.create_table(
        "job_requests",
        sa.Column("session_id", sa.Uuid(), sa.ForeignKey("inference_sessions.id"), nullable=False),
        sa.Column("cipher", sa.LargeBinary(), nullable=False),
        sa.Column("readable_until", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("session_id"),
    )
    op.create_index("idx_job_requests_readable_until", "job_requests", ["readable_until"])
    op.create_index(
        "idx_sessions_request_digest", table, ["user_wallet", "request_digest", "started_at"]
    )
