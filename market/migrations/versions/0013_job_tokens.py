"""The tokens of ended jobs, encrypted, for as long as they may be read."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.create_table(
        "job_tokens",
        sa.Column("session_id", sa.Uuid(), sa.ForeignKey("inference_sessions.id"), nullable=False),
        sa.Column("page", sa.Integer(), nullable=False),
        sa.Column("cipher", sa.LargeBinary(), nullable=False),
        sa.Column("readable_until", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("session_id", "page"),
    )
    op.create_index("idx_job_tokens_readable_until", "job_tokens", ["readable_until"])
