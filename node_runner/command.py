"""The command `far-node`, as it is installed: where the extra was forgotten, it says so.

Imports nothing then that comes with the extra.
"""

import sys

from node_runner.installation import SERVE, missing
from node_runner.service.exit_codes import CONFIG_ERROR


def main() -> None:
    """Run `far-node`. Where packages of a node are not installed, name one, say what to type, and
    end with :data:`CONFIG_ERROR`."""
    if absent := missing():
        others = f" and {len(absent) - 1} more packages" if len(absent) > 1 else ""
        sys.stderr.write(
            f"far-node: a node needs {absent[0]}{others}. Run: pip install '{SERVE}'\n"
        )
        sys.exit(CONFIG_ERROR)
    from node_runner.cli import app

    app(prog_name="far-node")
