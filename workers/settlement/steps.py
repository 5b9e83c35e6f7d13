"""The steps of a settlement, by name. Whatever is written or asked happens in one of them."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from enum import Enum, StrEnum, auto

from market import metrics


class Step(StrEnum):
    """Where a run may be; a test kills it in each of them, around every commit and question."""

    TAKE_BACK = "take_back"
    CLOSE = "close"
    SIMULATE = "simulate"
    LEAVE_OUT = "leave_out"
    SIGN = "sign"
    SEND = "send"
    REPLACE = "replace"
    RECONCILE = "reconcile"
    FINALITY = "finality"
    POST = "post"
    PAUSE = "pause"


class Progress(Enum):
    """What a step did for its batch."""

    MOVED = auto()
    """Look again at once."""
    WAITING = auto()
    """For the chain: look again a little later."""
    BLOCKED = auto()
    """Nothing more can be done in this run."""
    CONFIRMED = auto()


current: ContextVar[Step | None] = ContextVar("settlement_step", default=None)


@contextmanager
def step(name: Step) -> Iterator[None]:
    """Names what happens inside, and measures how long it takes."""
    token = current.set(name)
    began = time.monotonic()
    try:
        yield
    finally:
        current.reset(token)
        metrics.settlement_step.labels(name).observe(time.monotonic() - began)
