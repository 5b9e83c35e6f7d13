"""Which machine a node is, where it is, what it holds; and about where a user was."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

NODE = (
    "device_id",
    "gpu_index",
    "registration",
    "latitude",
    "longitude",
    "located",
    "quantization",
    "memory_bytes",
    "max_sessions",
    "min_price",
)
SESSION = ("near_latitude", "near_longitude")


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    for column in (
        sa.Column("device_id", sa.String(length=64), nullable=True),
        sa.Column("gpu_index", sa.Integer(), server_default="0", nullable=False),
        sa.Column("registration", sa.Integer(), server_default="1", nullable=False),
        sa.Column("latitude", sa.Float(), nullable=True),
        sa.Column("longitude", sa.Float(), nullable=True),
        sa.Column("located", sa.String(length=10), server_default="unknown", nullable=False),
        sa.Column("quantization", sa.String(length=10), server_default="none", nullable=False),
        sa.Column("memory_bytes", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("max_sessions", sa.Integer(), server_default="0", nullable=False),
        sa.Column("min_price", sa.Numeric(precision=38, scale=18), nullable=True),
    ):
        op.add_column("node_registry", column)
    op.create_index(
        "idx_registry_device",
        "node_registry",
        ["wallet_address", "device_id", "gpu_index"],
        unique=True,
        postgresql_where=sa.text("device_id IS NOT NULL"),
    )
    for name in SESSION:
        op.add_column("inference_sessions", sa.Column(name, sa.SmallInteger(), nullable=True))
