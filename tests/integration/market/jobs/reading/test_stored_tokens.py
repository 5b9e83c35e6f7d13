"""The tokens of ended jobs in Postgres: encrypted, in their places, and erased in time."""

import datetime as dt

import pytest
from sqlalchemy import func, select, update

from market.jobs.reading import erasure, stored_tokens
from market.jobs.reading.stored_tokens import TOKENS_PER_PAGE, StoredTokensReader
from market.jobs.tables import Job, StoredTokens
from market.resources import Resources
from mesh.wire.logprobs import Logprob, pack_logprobs
from tests.support.factories import session, token_entries
from workers.crons.token_eraser import erase_tokens

SECRET = "only-the-user-knows"


async def stored(
    resources: Resources, tokens: int, *, seconds: float = 60, logprobs: bytes = b""
) -> Job:
    """An ended job with its tokens, readable for so many seconds."""
    entries = token_entries(tokens, SECRET, logprobs=logprobs)
    job = session(status="completed")
    until = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=seconds)
    async with resources.sessions.begin() as db:
        db.add(job)
        await db.flush()
        db.add_all(stored_tokens.pages_of(resources.vault, job, entries, until))
    return job


def reader(resources: Resources) -> StoredTokensReader:
    return StoredTokensReader(resources.sessions, resources.vault)


async def pages(resources: Resources) -> int:
    async with resources.sessions() as db:
        return await db.scalar(select(func.count()).select_from(StoredTokens)) or 0


@pytest.mark.parametrize("tokens", [0, 1, TOKENS_PER_PAGE, 2 * TOKENS_PER_PAGE + 1])
async def test_what_was_stored_is_read(resources: Resources, tokens: int) -> None:
    job = await stored(resources, tokens)
    await stored(resources, 3)
    written = token_entries(tokens, SECRET)
    assert await reader(resources).all(job.request_id) == written
    for page in range(4):
        first = page * TOKENS_PER_PAGE
        assert (
            await reader(resources).page(job.request_id, page)
            == written[first : first + TOKENS_PER_PAGE]
        )


async def test_log_probabilities_are_stored_with_their_tokens(resources: Resources) -> None:
    logprobs = pack_logprobs([Logprob(7, -0.5), Logprob(8, -9999.0)])
    job = await stored(resources, TOKENS_PER_PAGE + 1, logprobs=logprobs)
    written = token_entries(TOKENS_PER_PAGE + 1, SECRET, logprobs=logprobs)
    assert await reader(resources).all(job.request_id) == written


async def test_postgres_does_not_have_it_in_the_clear(resources: Resources) -> None:
    await stored(resources, 3)
    async with resources.sessions() as db:
        [cipher] = await db.scalars(select(StoredTokens.cipher))
    assert SECRET.encode() not in cipher


async def test_a_page_in_the_place_of_another_is_not_read(resources: Resources) -> None:
    """Nor one of another job."""
    mine, other = await stored(resources, 200), await stored(resources, 200)
    async with resources.sessions.begin() as db:
        cipher = await db.scalar(
            select(StoredTokens.cipher).where(
                StoredTokens.session_id == mine.id, StoredTokens.page == 1
            )
        )
        for job, page in ((mine, 0), (other, 1)):
            await db.execute(
                update(StoredTokens)
                .where(StoredTokens.session_id == job.id, StoredTokens.page == page)
                .values(cipher=cipher)
            )
    assert await reader(resources).page(mine.request_id, 0) == []
    assert await reader(resources).page(other.request_id, 1) == []
    assert len(await reader(resources).page(mine.request_id, 1)) == 200 - TOKENS_PER_PAGE


async def test_it_is_read_for_its_time_and_erased_after_it(
    resources: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(erasure, "ERASED_AT_ONCE", 2)
    kept = await stored(resources, 200)
    expired = [await stored(resources, 200, seconds=-1) for _ in range(3)]
    for job in expired:
        assert await reader(resources).all(job.request_id) == []
        async with resources.sessions() as db:
            assert not await stored_tokens.has_tokens(db, job.id)
    assert await pages(resources) == 8
    await erase_tokens({"resources": resources})
    assert await pages(resources) == 2
    assert len(await reader(resources).all(kept.request_id)) == 200
    async with resources.sessions() as db:
        assert await stored_tokens.has_tokens(db, kept.id)
