"""`pip install far-mesh[node]` is small: it brings no web framework, database or chain client."""

import pkgutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution, requires

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import node_runner

NOT_FOR_NODES = {
    "alembic",
    "arq",
    "asyncpg",
    "boto3",
    "fastapi",
    "pydantic-settings",
    "sqlalchemy",
    "starlette",
    "uvicorn",
    "web3",
}
MODULES = ["alembic", "arq", "asyncpg", "boto3", "fastapi", "pydantic_settings", "siwe"]
MODULES += ["sqlalchemy", "starlette", "uvicorn", "web3", "api", "workers", "stack"]


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


def test_what_it_requires_is_small() -> None:
    needed = closure("far-mesh", frozenset({"node"}))
    assert {"torch", "transformers", "typer"} <= needed
    assert needed & NOT_FOR_NODES == set()
    assert "fastapi" in closure("far-mesh", frozenset({"api"}))


def test_every_module_of_a_node_runs_without_the_rest() -> None:
    names = [
        module.name
        for module in pkgutil.walk_packages(node_runner.__path__, "node_runner.")
        if not module.name.endswith("__main__")
    ]
    assert "node_runner.cli.start" in names
    code = (
        "import importlib, sys\n"
        f"for name in {MODULES!r}:\n"
        "    sys.modules[name] = None\n"
        f"for name in {names!r}:\n"
        "    importlib.import_module(name)\n"
    )
    subprocess.run([sys.executable, "-W", "error::ImportWarning", "-c", code], check=True)


def test_the_command_is_the_packages() -> None:
    (command,) = [
        entry
        for entry in distribution("far-mesh").entry_points
        if entry.group == "console_scripts" and entry.name == "far-node"
    ]
    assert command.load().info.no_args_is_help
