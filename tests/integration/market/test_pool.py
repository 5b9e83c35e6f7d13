"""Connections to Postgres."""

from sqlalchemy import text

from market import db
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
