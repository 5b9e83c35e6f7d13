"""Whether what a node needs was installed, by the metadata of the distribution `far-node`."""

import re
from importlib.metadata import PackageNotFoundError, distribution, requires

PACKAGE = "far-node"
SERVE = f"{PACKAGE}[serve]"
"""What a provider installs. Without the extra there is only what `mesh` needs, for the operator's
machines."""


def missing() -> list[str]:
    """The distributions of the extra that are not installed."""
    lines = (line for line in requires(PACKAGE) or [] if re.search("extra == .serve.", line))
    names = [re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in lines]
    return [name for name in names if not _installed(name)]


def _installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True
