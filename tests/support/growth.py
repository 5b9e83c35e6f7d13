"""How the time that something takes grows with the length of what it is given."""

import time
from collections.abc import Callable
from itertools import pairwise
from typing import AnyStr, TypeVar

T = TypeVar("T")

UNITS = (
    *"a0.-/:,;=%[]{}()\"'\\ \t\n_@#?",
    "é",
    "\u0660",
    "\ud800",
    "a://b:",
    "- a://b:\n",
    "\n- a:/?#",
    "h.1.",
    "layers.0.layers",
    "::",
    "for=1.2.3.4,",
    'for="',
    "a-",
    "a/",
    "a.",
    "1:00-",
    "1-1,",
    "0-0,",
    "1e9",
    '{"a":',
    "[[",
)
"""What texts are made of: each of them, again and again."""

LENGTHS = (1024, 4096, 16384, 65536)

MOST = 9.0
"""Times as long for four times the length: 4 if it is linear, 16 if it is quadratic, and what
caches and the allocator make of it in between."""

FLOOR = 0.5e-3
"""Seconds of the processor below which no ratio is looked at."""

TRIES = 3

ATTEMPTS = 4
"""Comparisons of all lengths, of which one has to be as it should: a machine is busy at times."""


def check_linear(call: Callable[[T], object], make: Callable[[int], T], name: str = "") -> None:
    """Compare times of the processor, the best of a few, between lengths that grow by four.

    Args:
        call: What is timed; may raise whatever it raises on such input, which counts as an answer.
        make: An input of about so many characters.
    """
    for _ in range(ATTEMPTS):
        taken = [_best(call, make(length)) for length in LENGTHS]
        slow = [
            f"{name}: {longer:.4f} s for {4 * length} characters, {shorter:.4f} s for {length}"
            for (length, shorter), (_, longer) in pairwise(zip(LENGTHS, taken, strict=True))
            if longer > MOST * max(shorter, FLOOR)
        ]
        if not slow:
            return
    raise AssertionError(slow)


def repeated(
    unit: AnyStr, begin: AnyStr | None = None, end: AnyStr | None = None
) -> Callable[[int], AnyStr]:
    """Texts of a unit, of whatever length."""
    nothing = unit[:0]
    return lambda length: (begin or nothing) + unit * (length // len(unit)) + (end or nothing)


def _best(call: Callable[[T], object], given: T) -> float:
    best = float("inf")
    for _ in range(TRIES):
        began = time.thread_time()
        try:
            call(given)
        except Exception:
            best = min(best, time.thread_time() - began)
        else:
            best = min(best, time.thread_time() - began)
        if best > 1:
            break
    return best
