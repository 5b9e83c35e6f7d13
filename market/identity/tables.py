"""What a wallet has let in: API keys for its apps, and machines that may register nodes for it."""

import datetime as dt
from decimal import Decimal

from sqlalchemy import CheckConstraint, Index, LargeBinary, String, func
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from market.db import AMOUNT, INSTANT, WALLET, Base


class ApiKey(Base):
    """One API key: the row is what makes it valid. The key itself is nowhere.

    ``key_hash``: SHA-256 of the key, which has 256 random bits, so that no dictionary helps.
    ``hint``: its first and last characters, by which its owner tells it from others. ``models``:
    none for all. Limits are of what the key's jobs may cost, in FAR, by UTC days and months; none
    for no limit. What was spent is in :class:`market.ledger.tables.KeySpending`.
    """

    __tablename__ = "api_keys"
    __table_args__ = (
        Index("idx_api_keys_wallet", "wallet_address", "created_at"),
        CheckConstraint(
            "least(limit_day_far, limit_month_far, limit_total_far) >= 0",
            name="check_key_limits_not_negative",
        ),
    )

    key_id: Mapped[str] = mapped_column(String(40), primary_key=True)
    wallet_address: Mapped[str] = mapped_column(WALLET)
    name: Mapped[str] = mapped_column(String(64))
    key_hash: Mapped[bytes] = mapped_column(LargeBinary, unique=True)
    hint: Mapped[str] = mapped_column(String(40))
    scopes: Mapped[list[str]] = mapped_column(ARRAY(String(20)))
    models: Mapped[list[str] | None] = mapped_column(ARRAY(String(255)))
    limit_day_far: Mapped[Decimal | None] = mapped_column(AMOUNT)
    limit_month_far: Mapped[Decimal | None] = mapped_column(AMOUNT)
    limit_total_far: Mapped[Decimal | None] = mapped_column(AMOUNT)
    generations_per_minute: Mapped[int | None]
    created_at: Mapped[dt.datetime] = mapped_column(INSTANT, server_default=func.now())
    expires_at: Mapped[dt.datetime | None] = mapped_column(INSTANT)
    last_used_at: Mapped[dt.datetime | None] = mapped_column(INSTANT)
    """When it was last shown, to a minute."""
    revoked_at: Mapped[dt.datetime | None] = mapped_column(INSTANT)


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
