"""What the jobs of an API key have cost, and what its limits leave: by UTC days and months.

A job counts by its hold while it runs, and by its cost once it has ended, on the day on which it
was asked for. What is released counts no more. Both change in the transaction that moves the money.
"""

import datetime as dt
from dataclasses import dataclass
from decimal import Decimal
from typing import NamedTuple, Self

from sqlalchemy import func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from market.identity.api_keys import check_usable
from market.identity.tables import ApiKey
from market.ledger.errors import KeyLimitReached
from market.ledger.tables import KeySpending
from market.money import ZERO, format_exact


class KeyDay(NamedTuple):
    """An API key, and the UTC day to whose spending a job of it belongs."""

    key_id: str
    day: dt.date

    @classmethod
    def now(cls, key_id: str) -> Self:
        """The key's present day."""
        return cls(key_id, dt.datetime.now(dt.UTC).date())


@dataclass(frozen=True, slots=True)
class Spent:
    """FAR that a key's jobs cost, or may cost as long as they run, on a day, in its month, ever."""

    day: Decimal = ZERO
    month: Decimal = ZERO
    total: Decimal = ZERO


@dataclass(frozen=True, slots=True)
class Limits:
    """FAR that a key's jobs may cost a day, a month and in all; none for no limit."""

    day: Decimal | None
    month: Decimal | None
    total: Decimal | None

    @classmethod
    def of(cls, key: ApiKey) -> Self:
        """Those of a key's row."""
        return cls(key.limit_day_far, key.limit_month_far, key.limit_total_far)

    def left(self, spent: Spent) -> "Limits":
        """What is left of each limit; zero where one was lowered below what is spent."""
        return Limits(
            _left(self.day, spent.day),
            _left(self.month, spent.month),
            _left(self.total, spent.total),
        )


async def spent_by(
    db: AsyncSession, key_ids: list[str], day: dt.date | None = None
) -> dict[str, Spent]:
    """What each of these keys has spent on a day, today if not given, in its month, and ever. A key
    has a row for each day on which it was used."""
    day = day or dt.datetime.now(dt.UTC).date()
    amount, first = func.sum(KeySpending.committed), day.replace(day=1)
    next_month = (first + dt.timedelta(days=31)).replace(day=1)
    in_month = (KeySpending.day >= first) & (KeySpending.day < next_month)
    rows = await db.execute(
        select(
            KeySpending.key_id,
            func.coalesce(amount.filter(KeySpending.day == day), 0),
            func.coalesce(amount.filter(in_month), 0),
            amount,
        )
        .where(KeySpending.key_id.in_(key_ids))
        .group_by(KeySpending.key_id)
    )
    found = {key_id: Spent(*amounts) for key_id, *amounts in rows}
    return {key_id: found.get(key_id, Spent()) for key_id in key_ids}


async def check_key(
    db: AsyncSession, key: KeyDay, amount: Decimal, *, at_least: bool = False
) -> None:
    """Refuse early what the hold would refuse now, without a lock; only the hold is certain.

    Args:
        at_least: The hold may be of more than this amount.

    Raises:
        KeyLimitReached: a limit of the key leaves less than that.
    """
    row = await db.get_one(ApiKey, key.key_id)
    await _check(db, row, key.day, amount, at_least=at_least)


async def commit_key(db: AsyncSession, key: KeyDay, amount: Decimal) -> None:
    """Count a hold against the key's limits.

    The caller has the lock on the wallet's money, under which all holds of its keys happen one
    after the other. The key's row is locked, too, so that a limit that is changed, and a key that
    is revoked, counts for each hold that comes after.

    Raises:
        KeyLimitReached: a limit of the key leaves less than that. Nothing was counted.
        NotAuthenticated: the key was revoked, or has expired, since it was shown.
    """
    row = await db.scalar(
        select(ApiKey)
        .where(ApiKey.key_id == key.key_id)
        .with_for_update(read=True)
        .execution_options(populate_existing=True)
    )
    if row is None:
        raise ValueError(f"There is no API key {key.key_id}.")
    check_usable(row)
    await _check(db, row, key.day, amount)
    added = insert(KeySpending).values(key_id=key.key_id, day=key.day, committed=amount)
    await db.execute(
        added.on_conflict_do_update(
            index_elements=[KeySpending.key_id, KeySpending.day],
            set_={"committed": KeySpending.committed + amount},
        )
    )


async def return_to_key(db: AsyncSession, key: KeyDay, amount: Decimal) -> None:
    """Count so many FAR of a hold no more, which the job has not cost."""
    await db.execute(
        update(KeySpending)
        .where(KeySpending.key_id == key.key_id, KeySpending.day == key.day)
        .values(committed=KeySpending.committed - amount)
    )


async def _check(
    db: AsyncSession, row: ApiKey, day: dt.date, amount: Decimal, *, at_least: bool = False
) -> None:
    spent = await spent_by(db, [row.key_id], day)
    left = Limits.of(row).left(spent[row.key_id])
    for period, rest in (("day", left.day), ("month", left.month), ("total", left.total)):
        if rest is not None and amount > rest:
            raise _reached(period, rest, amount, at_least=at_least)


def _reached(period: str, rest: Decimal, amount: Decimal, *, at_least: bool) -> KeyLimitReached:
    figure = format_exact(amount)
    cost = f"{figure} FAR or more" if at_least else f"up to {figure} FAR"
    limit = "in all" if period == "total" else f"a {period}"
    later = "" if period == "total" else f", wait for the next {period} (UTC)"
    return KeyLimitReached(
        f"This request may cost {cost}, and this API key's limit {limit} leaves "
        f"{format_exact(rest)} FAR. Raise the limit{later}, or lower max_tokens.",
        period=period,
    )


def _left(limit: Decimal | None, spent: Decimal) -> Decimal | None:
    return None if limit is None else max(ZERO, limit - spent)
