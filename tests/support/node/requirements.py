"""What pip would install."""

from importlib.metadata import PackageNotFoundError, requires

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def closure(name: str, extras: frozenset[str]) -> set[str]:
    """All distributions that pip would install for this one."""
    found: set[str] = set()
    waiting = [(canonicalize_name(name), extras)]
    seen = set()
    while waiting:
        entry = waiting.pop()
        if entry in seen:
            continue
        seen.add(entry)
        package, wanted = entry
        found.add(package)
        try:
            texts = requires(package) or []
        except PackageNotFoundError:
            continue  # for another platform
        for requirement in map(Requirement, texts):
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": each}) for each in wanted or [""]):
                waiting.append((canonicalize_name(requirement.name), frozenset(requirement.extras)))
    return found
