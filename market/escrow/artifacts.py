"""The compiled contracts, as committed."""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

ARTIFACTS = Path(__file__).parent / "compiled"
"""A link to ``contracts/artifacts``; in a wheel, their files."""


@lru_cache
def artifact(name: str) -> dict[str, Any]:
    """ABI and creation bytecode of a compiled contract."""
    found: dict[str, Any] = json.loads((ARTIFACTS / f"{name}.json").read_text())
    return found
