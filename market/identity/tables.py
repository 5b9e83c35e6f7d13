"""Machines that a wallet has let in, so that they may register nodes for it."""

import datetime as dt

from sqlalchemy import Index, String, func
from sqlalchemy.orm import Mapped, mapped_column

from market.db import INSTANT, WALLET, Base


class Machine(Base):
    """One machine's token: the row is what makes it valid."""

    __tablename__ = "machines"
    __table_args__ = (Index("idx_machines_wallet", "wallet_address", "created_at"),)

    machine_id: Mapped[str] = mapped_column(String(40), primary_key=True)
    wallet_address: Mapped[str] = mapped_column(WALLET)
    name: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[dt.datetime] = mapped_column(INSTANT, server_default=func.now())
    last_used_at: Mapped[dt.datetime | None] = mapped_column(INSTANT)
    """When it last showed its token."""
    revoked_at: Mapped[dt.datetime | None] = mapped_column(INSTANT)
