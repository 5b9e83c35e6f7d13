"""The tokens of ended jobs in Postgres, for as long as they may be read.

They are written in the transaction that charges for them, read where Redis has lost them, and
erased after that.

They rest as prompts do (:mod:`market.prompt_vault`), a page of :data:`TOKENS_PER_PAGE` a row, so
that a reader who resumes has one row decrypted and not all of a long text. A row is bounded by its
tokens: each stands for :data:`mesh.wire.limits.MAX_TOKEN_TEXT` characters at most.
"""

import datetime as dt
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

import msgpack
import structlog
from cryptography.exceptions import InvalidTag
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from market.db import Sessions
from market.jobs.live_session import TokenEntry
from market.jobs.tables import Job, StoredTokens
from market.prompt_vault import PromptVault

TOKENS_PER_PAGE = 128
"""About a millisecond's work to render."""

log = structlog.get_logger()


def pages_of(
    vault: PromptVault, job: Job, tokens: Sequence[TokenEntry], readable_until: dt.datetime
) -> list[StoredTokens]:
    """The rows of an ended job's tokens: all that it has, from the first on."""
    return [
        StoredTokens(
            session_id=job.id,
            page=page,
            cipher=_encrypt(vault, job.request_id, page, tokens[first : first + TOKENS_PER_PAGE]),
            readable_until=readable_until,
        )
        for page, first in enumerate(range(0, len(tokens), TOKENS_PER_PAGE))
    ]


async def has_tokens(db: AsyncSession, session_id: uuid.UUID) -> bool:
    """Whether tokens of a job are stored that may be read still."""
    found = select(StoredTokens.page).where(
        StoredTokens.session_id == session_id, StoredTokens.readable_until > func.now()
    )
    return await db.scalar(found.limit(1)) is not None


@dataclass(frozen=True, slots=True)
class StoredTokensReader:
    """Reads what :func:`pages_of` made."""

    sessions: Sessions
    vault: PromptVault

    async def page(self, request_id: str, page: int) -> list[TokenEntry]:
        """The tokens of one page; none if they are not stored, or may be read no more."""
        return await self._read(request_id, page)

    async def all(self, request_id: str) -> list[TokenEntry]:
        """All tokens of a job; none if they are not stored, or may be read no more."""
        return await self._read(request_id, None)

    async def _read(self, request_id: str, page: int | None) -> list[TokenEntry]:
        rows = (
            select(StoredTokens.page, StoredTokens.cipher)
            .join(Job, Job.id == StoredTokens.session_id)
            .where(Job.request_id == request_id, StoredTokens.readable_until > func.now())
            .order_by(StoredTokens.page)
        )
        async with self.sessions() as db:
            found = await db.execute(
                rows if page is None else rows.where(StoredTokens.page == page)
            )
        tokens: list[TokenEntry] = []
        try:
            for number, cipher in found.all():
                tokens += _decrypt(self.vault, request_id, number, cipher)
        except InvalidTag:
            log.error("prompt_key_changed", request_id=request_id)
            return []
        return tokens


def _encrypt(vault: PromptVault, request_id: str, page: int, tokens: Sequence[TokenEntry]) -> bytes:
    packed: bytes = msgpack.packb(
        [(token.token_id, token.text, token.logprobs) for token in tokens]
    )
    return vault.encrypt(_context(request_id, page), packed)


def _decrypt(vault: PromptVault, request_id: str, page: int, cipher: bytes) -> list[TokenEntry]:
    packed = vault.decrypt(_context(request_id, page), cipher)
    first = page * TOKENS_PER_PAGE + 1
    return [
        TokenEntry(f"{first + index}-0", *token)
        for index, token in enumerate(msgpack.unpackb(packed))
    ]


def _context(request_id: str, page: int) -> str:
    """What a page is authenticated with, so that none can be put in another's place, nor a prompt
    in that of a text."""
    return f"{request_id}/tokens/{page}"
