"""Cases of a test of which `make test` has the quick ones, and `make test-all` the rest."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def some_slow(cases: Iterable[Any], *, quick: Collection[Any]) -> list[Any]:
    """A test's parameters, of which all but the quick ones are marked as slow."""
    return [case if case in quick else pytest.param(case, marks=pytest.mark.slow) for case in cases]
