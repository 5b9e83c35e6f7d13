"""Statements of users and providers as CSV, page by page: no table is ever whole in memory."""

import datetime as dt
from collections.abc import AsyncIterator, Sequence
from typing import Any

from sqlalchemy import Select, and_, select, tuple_

from market.db import Sessions
from market.jobs.tables import Job, NodeContribution
from market.money import ZERO, format_exact
from market.receipts.receipt import ReceiptStatus
from market.settlement.tables import Settlement

PAGE = 1000
"""Rows read at a time, each page in a transaction of its own: a slow reader holds none open."""

USER_COLUMNS = (
    "ended_at",
    "request_id",
    "model_id",
    "tier",
    "status",
    "finish_reason",
    "prompt_tokens",
    "tokens",
    "price_per_token_far",
    "cost_far",
    "platform_fee_far",
    "payment",
    "batch_id",
    "transaction_hash",
    "cached_prompt_tokens",
    "price_per_prompt_token_far",
    "price_per_cached_prompt_token_far",
    "prompt_cost_far",
)


PROVIDER_COLUMNS = (
    "ended_at",
    "request_id",
    "model_id",
    "node_id",
    "first_layer",
    "last_layer",
    "tokens",
    "payment_far",
    "payment",
    "settled_at",
    "batch_id",
    "transaction_hash",
    "prompt_tokens",
)

FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet takes for the beginning of one."""

Page = list[list[str]]


async def user_statement(
    sessions: Sessions, wallet: str, since: dt.datetime, until: dt.datetime
) -> AsyncIterator[Page]:
    """A user's jobs that ended from ``since`` on and before ``until``, oldest first."""
    job = Job
    query = (
        select(
            job.id,
            job.completed_at,
            job.request_id,
            job.model_id,
            job.tier,
            job.status,
            job.finish_reason,
            job.prompt_tokens,
            job.token_count,
            job.price_per_token_far,
            job.total_cost_far,
            job.fee_far,
            job.settlement_id,
            job.cached_prompt_tokens,
            job.price_per_prompt_token_far,
            job.price_per_cached_prompt_token_far,
            job.prompt_cost_far,
            Settlement.status.label("settlement_status"),
            Settlement.transaction_hash,
        )
        .outerjoin(Settlement, Settlement.id == job.settlement_id)
        .where(job.user_wallet == wallet, job.completed_at >= since, job.completed_at < until)
        .order_by(job.completed_at, job.id)
    )
    place = tuple_(job.completed_at, job.id)
    after: Any = None
    while rows := await _rows(sessions, query if after is None else query.where(place > after)):
        after = (rows[-1].completed_at, rows[-1].id)
        yield [
            [
                _time(row.completed_at),
                row.request_id,
                _text(row.model_id),
                row.tier,
                row.status,
                row.finish_reason or "",
                str(row.prompt_tokens),
                str(row.token_count),
                format_exact(row.price_per_token_far),
                format_exact(row.total_cost_far or ZERO),
                format_exact(row.fee_far or ZERO),
                _payment(row.total_cost_far or ZERO, row.settlement_status),
                row.settlement_id or "",
                row.transaction_hash or "",
                str(row.cached_prompt_tokens),
                format_exact(row.price_per_prompt_token_far),
                format_exact(row.price_per_cached_prompt_token_far),
                format_exact(row.prompt_cost_far),
            ]
            for row in rows
        ]


async def provider_statement(
    sessions: Sessions, wallet: str, since: dt.datetime, until: dt.datetime
) -> AsyncIterator[Page]:
    """What a wallet's nodes earned with jobs that ended in that span, in the order of their
    endings."""
    job, part = Job, NodeContribution
    query = (
        select(
            part.id,
            job.completed_at,
            job.request_id,
            job.model_id,
            part.node_id,
            part.layers,
            part.tokens_contributed,
            part.prompt_tokens_contributed,
            part.payment_far,
            part.paid_at,
            job.settlement_id,
            Settlement.status.label("settlement_status"),
            Settlement.transaction_hash,
        )
        .join(job, and_(job.id == part.session_id))
        .outerjoin(Settlement, Settlement.id == job.settlement_id)
        .where(part.wallet_address == wallet, job.completed_at >= since, job.completed_at < until)
        .order_by(part.id)
    )
    after = 0
    while rows := await _rows(sessions, query.where(part.id > after)):
        after = rows[-1].id
        yield [
            [
                _time(row.completed_at),
                row.request_id,
                _text(row.model_id),
                _text(row.node_id),
                str(min(row.layers)),
                str(max(row.layers)),
                str(row.tokens_contributed),
                format_exact(row.payment_far),
                _payment(row.payment_far, row.settlement_status),
                "" if row.paid_at is None else _time(row.paid_at),
                row.settlement_id or "",
                row.transaction_hash or "",
                str(row.prompt_tokens_contributed),
            ]
            for row in rows
        ]


async def _rows(sessions: Sessions, query: Select[*tuple[Any, ...]]) -> Sequence[Any]:
    async with sessions() as db:
        rows: Sequence[Any] = (await db.execute(query.limit(PAGE))).all()
    return rows


def _text(value: str) -> str:
    """Text that somebody chose, as no spreadsheet runs it."""
    return f"'{value}" if value.startswith(FORMULA) else value


def _time(instant: dt.datetime) -> str:
    return instant.astimezone(dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _payment(amount: Any, settlement_status: str | None) -> str:
    if not amount:
        return ReceiptStatus.FREE
    if settlement_status is None:
        return ReceiptStatus.CAPTURED
    if settlement_status == "confirmed":
        return ReceiptStatus.SETTLED
    return ReceiptStatus.IN_BATCH
