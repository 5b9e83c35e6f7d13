"""`python -m node_runner.server`: a node, started with the specification's flags (§3.2.4)."""

import argparse
import sys
from collections.abc import Sequence

from node_runner.cli import app


def main(arguments: Sequence[str] | None = None) -> None:
    """Translate the flags, and start as `far-node start` does. What else that takes may follow."""
    parser = argparse.ArgumentParser(
        prog="python -m node_runner.server", description="Far Node Server"
    )
    parser.add_argument("--model", required=True, help="Model ID")
    parser.add_argument("--wallet", required=True, help="Wallet address")
    parser.add_argument("--discovery-url", required=True, help="Discovery service URL")
    parser.add_argument("--public-addr", required=True, help="Public IP:PORT")
    parser.add_argument("--gpu", type=int, default=0, help="GPU index")
    known, others = parser.parse_known_args(arguments)
    command = ["start", "--model", known.model, "--wallet", known.wallet]
    command += ["--discovery", known.discovery_url, "--public-addr", known.public_addr]
    if "--device" not in (each.partition("=")[0] for each in others):
        command += ["--gpu", str(known.gpu)]
    sys.argv = ["far-node", *command, *others]  # with which it starts again after an update, too
    app(prog_name="far-node")


if __name__ == "__main__":
    main(sys.argv[1:])
