"""The tree of errors: in errors modules, a code each, and a place in the documents."""

import importlib
import re
from pathlib import Path

import mesh.errors
from mesh.errors import MeshError

ROOT = Path(__file__).parents[2]
PACKAGES = ("api", "cli", "discovery", "market", "mesh", "node_runner", "stack", "workers")
MODULES = [
    ".".join(file.relative_to(ROOT).with_suffix("").parts)
    for package in PACKAGES
    for file in sorted((ROOT / package).rglob("errors.py"))
]

OPERATORS = {"market.chain.errors", "market.escrow.errors", "market.settlement.errors"}
"""Whose errors only the operator sees, in logs and by commands."""


def tree(root: type[MeshError]) -> list[type[MeshError]]:
    return [root, *(found for child in root.__subclasses__() for found in tree(child))]


def errors() -> list[type[MeshError]]:
    for module in MODULES:
        importlib.import_module(module)
    return [error for error in tree(MeshError) if error.__module__.partition(".")[0] in PACKAGES]


def test_every_errors_module_is_in_the_tree() -> None:
    modules = {error.__module__ for error in errors()}
    assert modules <= set(MODULES), "an error stands outside an errors module"
    assert {"api.http.errors", "market.errors", "mesh.errors"} < modules


def test_every_error_has_a_code_of_its_own_and_is_in_the_drawn_tree() -> None:
    classes = errors()
    codes = [error.code for error in classes]
    assert len(set(codes)) == len(codes)
    drawn = set(re.findall(r"\w+", mesh.errors.__doc__ or ""))
    for error in classes:
        assert error.__name__ in drawn
        assert error.status >= 400


def test_the_drawn_tree_has_no_error_that_is_gone() -> None:
    drawn = set(re.findall(r"\b[A-Z][a-z]+(?:[A-Z][a-z]+)+\b", mesh.errors.__doc__ or ""))
    assert drawn <= {error.__name__ for error in errors()}


def test_every_code_that_the_gateway_answers_with_is_documented() -> None:
    documented = set(re.findall(r"`(\w+)`", (ROOT / "docs" / "api.md").read_text()))
    for error in errors():
        answered = error.__module__ not in OPERATORS | {"mesh.errors"}
        if answered and not error.__subclasses__():
            assert error.code in documented, error.__name__
