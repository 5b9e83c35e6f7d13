"""Rebalances: changes of nodes' spans."""

import datetime as dt
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, Identity, Index, String, func, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from market.db import INSTANT, Base

UNDER_WAY = ("proposed", "loading")


class Rebalance(Base):
    """Spans of one model's nodes that change together. The database allows one under way a model.

    ``proposed``: no node has asked for its assignment yet. ``loading``: one has. ``switched``: all
    had loaded, and routes use the new spans since. ``failed``, ``expired``: nothing changed.
    """

    __tablename__ = "placement_moves"
    __table_args__ = (
        CheckConstraint(
            "state IN ('proposed', 'loading', 'switched', 'failed', 'expired')",
            name="check_move_state",
        ),
        Index(
            "uq_moves_under_way",
            "model_id",
            unique=True,
            postgresql_where=text("state IN ('proposed', 'loading')"),
        ),
        Index("idx_moves_model", "model_id", "proposed_at"),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    model_id: Mapped[str] = mapped_column(String(255))
    changes: Mapped[list[dict[str, Any]]] = mapped_column(JSONB)
    """By node: ``node_id``, ``old`` and ``new`` span as ``[start, end]``, and ``loaded``;
    after a failure also ``failed``: whether it was for this node."""
    steps_before: Mapped[float]
    steps_after: Mapped[float]
    """Steps a second of all nodes together, as predicted."""
    load_seconds: Mapped[float]
    state: Mapped[str] = mapped_column(String(20), server_default="proposed")
    reason: Mapped[str | None] = mapped_column(String(100))
    """Why the rebalance failed or expired."""
    proposed_at: Mapped[dt.datetime] = mapped_column(INSTANT, server_default=func.now())
    ended_at: Mapped[dt.datetime | None] = mapped_column(INSTANT)
