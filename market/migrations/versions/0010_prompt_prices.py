"""Prompt tokens have prices of their own; those of jobs from before cost nothing."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    for name in (
        "price_per_prompt_token_far",
        "price_per_cached_prompt_token_far",
        "prompt_cost_far",
    ):
        op.add_column(
            "inference_sessions",
            sa.Column(name, sa.Numeric(38, 18), server_default="0", nullable=False),
        )
    op.add_column(
        "inference_sessions",
        sa.Column("cached_prompt_tokens", sa.Integer(), server_default="0", nullable=False),
    )
    op.add_column(
        "node_contributions",
        sa.Column("prompt_tokens_contributed", sa.Integer(), server_default="0", nullable=False),
    )
