"""`python -m workers.settlement --dry-run | --resume`: what `far-mesh settle` starts."""

import argparse
import asyncio
import sys

from market.chain.open_signer import open_signer
from market.escrow.reader import Escrow
from market.resources import open_services
from market.settings import Settings
from mesh import log
from mesh.errors import MeshError
from workers.settlement import pauses
from workers.settlement.preview import describe, make_plan


async def dry_run(settings: Settings) -> list[str]:
    """What the next batch would be. Sends nothing.

    Raises:
        MeshError: the chain or the signer cannot be asked.
    """
    escrow = Escrow.of(settings.payments)
    try:
        signer = await open_signer(settings.payments)
        async with open_services(settings) as services:
            return describe(await make_plan(services, escrow, signer))
    finally:
        await escrow.close()


async def resume(settings: Settings) -> list[str]:
    """End a pause."""
    async with open_services(settings) as services:
        ended = await pauses.resume(services.sessions)
    if ended is None:
        return ["Settlement was not paused."]
    return [f"Settlement goes on. It was paused ({ended.reason}): {ended.detail}"]


def main() -> None:
    parser = argparse.ArgumentParser(prog="far-mesh settle", description="Settlement, by hand.")
    wanted = parser.add_mutually_exclusive_group(required=True)
    wanted.add_argument("--dry-run", action="store_true", help="show the next batch, send nothing")
    wanted.add_argument("--resume", action="store_true", help="end a pause")
    chosen = parser.parse_args()
    settings = Settings()
    log.configure(json=settings.log_json)
    try:
        said = asyncio.run(dry_run(settings) if chosen.dry_run else resume(settings))
    except MeshError as error:
        sys.exit(f"far-mesh: {error.detail}")
    print("\n".join(said))


if __name__ == "__main__":
    main()
