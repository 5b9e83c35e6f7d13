"""Main memory that this process may still take: the host's, or what its containers leave of it."""

from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")


def available_main_memory(root: Path = ROOT) -> int:
    """Bytes that are available, as Linux counts them and as each control group (cgroup v1 or v2)
    allows, from this process's own up to the topmost that is visible; 0 on other systems.

    Args:
        root: Of the file system.
    """
    host = _host(root)
    return max(0, min([host, *_left_in_groups(root)])) if host is not None else 0


def _host(root: Path) -> int | None:
    for line in _lines(root / "proc/meminfo"):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _left_in_groups(root: Path) -> Iterator[int]:
    """What each group with a limit leaves: the limit less what is used, of which files that were
    not read lately do not count, since they give way."""
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if not controllers:  # v2, and beside it the hierarchies of v1
            mounted = root / "sys/fs/cgroup"
            names = ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            mounted = root / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        for group in _with_parents(mounted, path):
            limit, used = _number(group / names[0]), _number(group / names[1])
            if limit is not None and used is not None:
                yield limit - max(0, used - _stat(group, names[2]))


def _with_parents(mounted: Path, path: str) -> Iterator[Path]:
    """A group's folder and those above it. In a container the path may be the host's, of which only
    the mounted folder, the container's own group, is there."""
    parts = [part for part in path.strip("/").split("/") if part not in ("", "..")]
    for length in range(len(parts), -1, -1):
        yield mounted.joinpath(*parts[:length])


def _number(file: Path) -> int | None:
    """None where there is no such file, or no limit ("max")."""
    text = next(iter(_lines(file)), "")
    return int(text) if text.isdecimal() else None


def _stat(group: Path, name: str) -> int:
    for line in _lines(group / "memory.stat"):
        key, _, value = line.partition(" ")
        if key == name and value.isdecimal():
            return int(value)
    return 0


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except OSError:
        return []
