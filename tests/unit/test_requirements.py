"""What the two distributions require: all that their packages import, and no torch for the API."""

import ast
import sys
from collections.abc import Mapping
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from tests.support.node.requirements import closure

REPOSITORY = Path(__file__).parents[2]
OURS = {"api", "cli", "discovery", "market", "mesh", "node_runner", "stack", "workers"}


@cache
def holders() -> Mapping[str, list[str]]:
    """The distributions that each top-level module comes with, of those that are installed here."""
    return packages_distributions()


def imported(package: str) -> set[str]:
    """The top-level modules of others that a package of ours imports, anywhere in its files."""
    found = set()
    for file in (REPOSITORY / package).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                found |= {each.name.partition(".")[0] for each in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.partition(".")[0])
    return found - OURS - set(sys.stdlib_module_names)


def unmet(modules: set[str], distribution: str, extras: set[str]) -> set[str]:
    """Of the modules that are installed here, those that the distribution does not bring."""
    required = closure(distribution, frozenset(extras))
    return {
        module
        for module in modules & holders().keys()
        if not required & {canonicalize_name(each) for each in holders()[module]}
    }


@pytest.mark.parametrize(
    ("package", "distribution", "extras"),
    [
        ("mesh", "far-node", {"dht"}),  # for mesh.dht.peer alone
        ("node_runner", "far-node", {"serve"}),
        ("market", "far-mesh", set()),
        ("api", "far-mesh", {"api"}),
        ("workers", "far-mesh", {"workers"}),
        ("cli", "far-mesh", {"cli"}),
        ("discovery", "far-mesh", {"dht"}),
        ("stack", "far-mesh", {"stack"}),
    ],
)
def test_all_that_is_imported_is_required(
    package: str, distribution: str, extras: set[str]
) -> None:
    assert imported(package)
    assert unmet(imported(package), distribution, extras) == set()


def test_the_protocol_needs_no_extra() -> None:
    assert unmet(imported("mesh") - {"hivemind"}, "far-node", set()) == set()
    assert "torch" not in closure("far-node", frozenset())


@pytest.mark.parametrize("extras", [{"api"}, {"workers"}, {"api", "workers", "cli"}])
def test_an_operators_machine_gets_no_torch(extras: set[str]) -> None:
    needed = closure("far-mesh", frozenset(extras))
    assert {"far-node", "sqlalchemy", "web3"} <= needed
    assert needed & {"torch", "transformers", "hivemind"} == set()
    assert "torch" in closure("far-mesh", frozenset({"dht"}))  # by hivemind
