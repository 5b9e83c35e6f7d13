"""Connections to Postgres."""

import asyncio
import time

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from market import db, outages
from market.errors import Unavailable
from stack.servers import Postgres


async def test_a_connection_that_postgres_closed_costs_no_transaction(
    postgres: Postgres, database_url: str
) -> None:
    engine, sessions = db.connect(database_url)
    async with engine.connect() as connection:
        driver = (await connection.get_raw_connection()).driver_connection
        assert driver is not None
    process = driver.get_server_pid()
    postgres.execute(f"SELECT pg_terminate_backend({process})")
    async with sessions.begin() as session:
        assert await session.scalar(text("SELECT pg_backend_pid()")) != process
    await engine.dispose()


@pytest.mark.parametrize("limit", ["statement_timeout", "lock_timeout"])
async def test_what_is_too_slow_for_postgres_counts_as_an_outage(
    sessions: db.Sessions, limit: str
) -> None:
    """The caller gets 503 and comes again, instead of 500."""
    async with sessions.begin() as other:
        await other.execute(text("LOCK TABLE outbox IN EXCLUSIVE MODE"))
        with pytest.raises(DBAPIError) as caught:
            async with sessions.begin() as session:
                await session.execute(text(f"SET LOCAL {limit} = 20"))
                await session.execute(text("LOCK TABLE outbox IN EXCLUSIVE MODE"))
    assert isinstance(outages.unavailable(caught.value), Unavailable)


async def test_a_cancelled_statement_ends_at_the_server_too(
    sessions: db.Sessions, postgres: Postgres
) -> None:
    async with sessions() as session:
        process = await session.scalar(text("SELECT pg_backend_pid()"))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await session.execute(text("SELECT pg_sleep(7)"))
    query = f"SELECT 1 FROM pg_stat_activity WHERE pid = {process}"
    give_up = time.monotonic() + 5
    while postgres.execute(query) != "SELECT 0":
        assert time.monotonic() < give_up
        await asyncio.sleep(0.05)
