"""`far-mesh settle`: the next batch, and the end of a pause."""

import asyncio
from typing import Annotated

import typer

from cli.console import console, failures_told
from market.chain.open_signer import open_signer
from market.escrow.reader import EscrowReader
from market.resources import open_resources
from market.settings import Settings
from mesh import log
from workers.settlement.alerts import pauses
from workers.settlement.preview import describe, make_preview


def settle(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what the next batch would be; send nothing.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on after a pause, once its cause is gone.")
    ] = False,
) -> None:
    """Look at settlement, or end a pause. The workers settle by themselves."""
    if dry_run == resume:
        raise typer.BadParameter("Say --dry-run or --resume.")
    with failures_told():
        settings = Settings()
        log.configure(json=settings.log_json)
        lines = asyncio.run(_preview(settings) if dry_run else _resume(settings))
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


async def _preview(settings: Settings) -> list[str]:
    """Lines of text that say what the next batch would be. Sends nothing.

    Raises:
        MeshError: the chain or the signer cannot be asked.
    """
    async with EscrowReader.from_settings(settings.payments) as escrow:
        signer = await open_signer(settings.payments)
        async with open_resources(settings) as resources:
            return describe(await make_preview(resources, escrow, signer))


async def _resume(settings: Settings) -> list[str]:
    async with open_resources(settings) as resources:
        ended = await pauses.resume(resources.sessions)
    if ended is None:
        return ["Settlement was not paused."]
    return [f"Settlement goes on. It was paused ({ended.reason}): {ended.detail}"]
