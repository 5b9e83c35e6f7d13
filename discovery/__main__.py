"""The DHT's side of the discovery service: ``python -m discovery``."""

import argparse
import asyncio
import sys

from discovery.service import DiscoveryStartError, print_peers, serve
from market.settings import Settings
from mesh import log


def main() -> None:
    """Run until a signal stops it."""
    parser = argparse.ArgumentParser(prog="python -m discovery", description=__doc__)
    parser.add_argument("--print-peers", action="store_true", help="show what to hand out, and end")
    run = print_peers if parser.parse_args().print_peers else serve
    settings = Settings()
    log.configure(json=settings.log_json)
    try:
        sys.exit(asyncio.run(run(settings)))
    except DiscoveryStartError as error:
        sys.exit(f"far-mesh: {error}")


if __name__ == "__main__":
    main()
