"""Table of all nodes that ever registered."""

import datetime as dt
from decimal import Decimal

from sqlalchemy import (
    BigInteger,
    ForeignKey,
    Index,
    String,
    func,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from market.db import AMOUNT, INSTANT, WALLET, Base


class RegisteredNode(Base):
    """A node whose wallet was once proved; which nodes are alive now is in Redis."""

    __tablename__ = "node_registry"
    __table_args__ = (
        Index("idx_registry_model", "model_id"),
        Index("idx_registry_wallet", "wallet_address"),
        Index("idx_registry_active", "is_active"),
        Index(
            "idx_registry_device",
            "wallet_address",
            "device_id",
            "gpu_index",
            unique=True,
            postgresql_where=text("device_id IS NOT NULL"),
        ),
        Index("idx_registry_machine", "machine_id"),
    )

    node_id: Mapped[str] = mapped_column(String(255), primary_key=True)
    wallet_address: Mapped[str] = mapped_column(WALLET)
    model_id: Mapped[str] = mapped_column(String(255))
    gpu_model: Mapped[str | None] = mapped_column(String(100))
    vram_gb: Mapped[int | None]
    location: Mapped[str | None] = mapped_column(String(100))
    public_addr: Mapped[str | None] = mapped_column(String(255))
    registered_at: Mapped[dt.datetime] = mapped_column(INSTANT, server_default=func.now())
    last_seen: Mapped[dt.datetime | None] = mapped_column(INSTANT)
    is_active: Mapped[bool] = mapped_column(server_default="true")
    total_tokens_served: Mapped[int] = mapped_column(BigInteger, server_default="0")
    total_earned_far: Mapped[Decimal] = mapped_column(AMOUNT, server_default="0")

    start_layer: Mapped[int]
    end_layer: Mapped[int]
    edge: Mapped[bool] = mapped_column(server_default="false")
    uptime_seconds: Mapped[float] = mapped_column(server_default="0")
    """Time between heartbeats that were no further apart than the TTL. Written now and then: what
    has come since is in Redis."""
    device_id: Mapped[str | None] = mapped_column(String(64))
    gpu_index: Mapped[int] = mapped_column(server_default="0")
    registration: Mapped[int] = mapped_column(server_default="1")
    """How often the node has registered. Only the last counts."""
    latitude: Mapped[float | None]
    longitude: Mapped[float | None]
    located: Mapped[str] = mapped_column(String(10), server_default="unknown")
    """How the place is known: ``geoip``, ``declared`` or ``unknown``."""
    quantization: Mapped[str] = mapped_column(String(10), server_default="none")
    memory_bytes: Mapped[int] = mapped_column(BigInteger, server_default="0")
    max_sessions: Mapped[int] = mapped_column(server_default="0")
    min_price: Mapped[Decimal | None] = mapped_column(AMOUNT)

    placeable: Mapped[bool] = mapped_column(server_default="false")
    """Whether the platform chooses its span; else its owner did."""
    machine_id: Mapped[str | None] = mapped_column(ForeignKey("machines.machine_id"))
    """The machine that registered it; none where the wallet itself signed."""
