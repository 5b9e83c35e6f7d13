"""Brings a database to the newest schema: ``await upgrade(url)``, or ``far-mesh migrate``."""

import asyncio
from pathlib import Path

from alembic import command
from alembic.config import Config


def config(database_url: str) -> Config:
    """Alembic's configuration for one database; no ini file needed."""
    made = Config()
    made.set_main_option("script_location", str(Path(__file__).parent))
    made.set_main_option("sqlalchemy.url", database_url.replace("%", "%%"))
    return made


async def upgrade(database_url: str) -> None:
    """Run every migration that the database lacks."""
    await asyncio.to_thread(command.upgrade, config(database_url), "head")
