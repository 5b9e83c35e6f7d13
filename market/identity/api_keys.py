"""API keys of a wallet: made, listed, changed and revoked by it, and looked up whenever one is
shown."""

import asyncio
import datetime as dt
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from market.db import Sessions
from market.identity.api_key_text import hash_of, hint_of, is_well_formed, new_key
from market.identity.errors import (
    ApiKeyExpired,
    ApiKeyNotFound,
    ApiKeyRevoked,
    ApiKeyUnknown,
    TooManyApiKeys,
)
from market.identity.principal import Principal, Scope
from market.identity.tables import ApiKey

MAX_KEYS = 100
"""Of a wallet, those that are revoked not counted."""

KEYS_LOCK = 0x0FA17
"""First half of an advisory lock's key; the second is the wallet's."""

LAST_USE = dt.timedelta(minutes=1)
"""How exact the time of a key's last use is: so often its row is written."""

LOOKUPS_AT_ONCE = 4
"""Connections of a process for looking keys up: what strangers show leaves jobs and money the
rest."""


@dataclass(frozen=True, slots=True)
class KeyTerms:
    """What a key may do. ``models``: none for all. Limits in FAR and by UTC days and months; none
    for no limit. ``expires_at``: none for never."""

    name: str
    scopes: Sequence[Scope]
    models: Sequence[str] | None = None
    limit_day_far: Decimal | None = None
    limit_month_far: Decimal | None = None
    limit_total_far: Decimal | None = None
    generations_per_minute: int | None = None
    expires_at: dt.datetime | None = None


async def make(db: AsyncSession, wallet: str, terms: KeyTerms) -> tuple[ApiKey, str]:
    """A new key of a wallet: its row, and the key, which can never be shown again.

    Raises:
        TooManyApiKeys: the wallet has as many as it may have.
    """
    await db.execute(select(func.pg_advisory_xact_lock(KEYS_LOCK, func.hashtext(wallet))))
    keys = await db.scalar(select(func.count()).select_from(ApiKey).where(*_of(wallet)))
    if (keys or 0) >= MAX_KEYS:
        raise TooManyApiKeys(f"You have {keys} API keys. Revoke one that you do not use.")
    text = new_key()
    row = ApiKey(
        key_id=f"key_{secrets.token_hex(8)}",
        wallet_address=wallet,
        key_hash=hash_of(text),
        hint=hint_of(text),
        **asdict(terms),
    )
    db.add(row)
    await db.flush()
    await db.refresh(row)
    return row, text


async def keys_of(db: AsyncSession, wallet: str) -> Sequence[ApiKey]:
    """A wallet's keys that are not revoked, the newest first."""
    rows = await db.scalars(
        select(ApiKey).where(*_of(wallet)).order_by(ApiKey.created_at.desc(), ApiKey.key_id)
    )
    return rows.all()


async def find(db: AsyncSession, wallet: str, key_id: str) -> ApiKey:
    """
    Raises:
        ApiKeyNotFound: the wallet has no such key.
    """
    found = await db.scalar(select(ApiKey).where(ApiKey.key_id == key_id, *_of(wallet)))
    if found is None:
        raise _not_found(key_id)
    return found


async def change(db: AsyncSession, wallet: str, key_id: str, values: Mapping[str, Any]) -> ApiKey:
    """Change terms of a key, by name as :class:`KeyTerms` has them. A limit that is lowered below
    what is spent ends the key's spending; it takes nothing back.

    Raises:
        ApiKeyNotFound: the wallet has no such key.
    """
    if not values:
        return await find(db, wallet, key_id)
    mine = (ApiKey.key_id == key_id, *_of(wallet))
    changed: ApiKey | None = await db.scalar(
        update(ApiKey).where(*mine).values(**values).returning(ApiKey)
    )
    if changed is None:
        raise _not_found(key_id)
    return changed


async def revoke(db: AsyncSession, wallet: str, key_id: str) -> None:
    """Take a key back, for good: its next request is refused. Its jobs that run go on.

    Raises:
        ApiKeyNotFound: the wallet has no such key.
    """
    await change(db, wallet, key_id, {"revoked_at": func.now()})


def check_usable(key: ApiKey) -> None:
    """
    Raises:
        ApiKeyRevoked: its wallet has taken it back.
        ApiKeyExpired: its time is over.
    """
    if key.revoked_at is not None:
        raise ApiKeyRevoked("This API key was revoked. Make a new one at /api/keys.")
    if key.expires_at is not None and key.expires_at <= dt.datetime.now(dt.UTC):
        raise ApiKeyExpired("This API key has expired. Make a new one at /api/keys.")


class KeyLookups:
    """Looks keys up, for one process.

    Nothing is kept: a key that was revoked or changed a moment ago counts as that on its next
    request. A lookup is one row by an index.
    """

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self._turns = asyncio.Semaphore(LOOKUPS_AT_ONCE)
        self._noting: set[str] = set()

    async def find(self, text: str) -> Principal:
        """Who holds the key, and what he may do with it.

        Raises:
            ApiKeyUnknown: it is none of ours.
            ApiKeyRevoked: its wallet has taken it back.
            ApiKeyExpired: its time is over.
        """
        if not is_well_formed(text):
            raise ApiKeyUnknown("This API key is not whole. Copy it again, or make a new one.")
        async with self._turns, self._sessions() as db:
            row = await db.scalar(select(ApiKey).where(ApiKey.key_hash == hash_of(text)))
        if row is None:
            raise ApiKeyUnknown("This API key is not one of ours. Make one at /api/keys.")
        check_usable(row)
        if row.last_used_at is None or dt.datetime.now(dt.UTC) - row.last_used_at > LAST_USE:
            await self._note_use(row.key_id)
        return _principal(row)

    async def _note_use(self, key_id: str) -> None:
        """Of all requests of one moment one writes; nobody waits for who else has the row."""
        if key_id in self._noting:
            return
        self._noting.add(key_id)
        try:
            async with self._turns, self._sessions.begin() as db:
                free = select(ApiKey.key_id).where(ApiKey.key_id == key_id)
                await db.execute(
                    update(ApiKey)
                    .where(ApiKey.key_id.in_(free.with_for_update(skip_locked=True)))
                    .values(last_used_at=func.now())
                )
        finally:
            self._noting.discard(key_id)


def _principal(row: ApiKey) -> Principal:
    return Principal(
        kind="key",
        subject=row.wallet_address,
        scopes=frozenset(map(Scope, row.scopes)),
        key_id=row.key_id,
        models=None if row.models is None else frozenset(row.models),
        generations_per_minute=row.generations_per_minute,
    )


def _of(wallet: str) -> tuple[Any, ...]:
    return (ApiKey.wallet_address == wallet, ApiKey.revoked_at.is_(None))


def _not_found(key_id: str) -> ApiKeyNotFound:
    return ApiKeyNotFound(f"You have no API key {key_id}.")
