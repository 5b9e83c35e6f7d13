"""Alembic's entry: runs the migrations on the URL it is given, inside one transaction."""

import asyncio

from alembic import context
from sqlalchemy import Connection
from sqlalchemy.pool import NullPool

from market.clients.postgres import MIGRATION, open_engine
from market.migrations.tables import METADATA
from market.settings import settings


def _migrate(connection: Connection) -> None:
    context.configure(connection=connection, target_metadata=METADATA)
    with context.begin_transaction():
        context.run_migrations()


async def _run() -> None:
    url = context.config.get_main_option("sqlalchemy.url") or settings().database_url
    engine = open_engine(url, MIGRATION, poolclass=NullPool)
    async with engine.connect() as connection:
        await connection.run_sync(_migrate)
        await connection.commit()
    await engine.dispose()


asyncio.run(_run())
