"""The steps of a settlement, by name. Whatever is written or asked happens in one of them."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from enum import Enum, StrEnum, auto

from market import metrics


class Step(StrEnum):
    """Where a run may be; a test kills it in each of them, around every commit and question.

    Values are the label ``step`` of the metric ``far_settlement_step_seconds``.
    """

    REORG = "take_back"
    CLOSE = "close"
    SIMULATE = "simulate"
    EXCLUDE = "leave_out"
    SIGN = "sign"
    SEND = "send"
    REPLACE = "replace"
    RECONCILE = "reconcile"
    FINALITY = "finality"
    POST = "post"
    PAUSE = "pause"


class StepResult(Enum):
    """What a step did for its batch."""

    MOVED = auto()
    """Look again at once."""
    WAITING = auto()
    """For the chain: look again a little later."""
    BLOCKED = auto()
    """Nothing more can be done in this run."""
    CONFIRMED = auto()


current_step: ContextVar[Step | None] = ContextVar("settlement_step", default=None)


@contextmanager
def step(name: Step) -> Iterator[None]:
    """Names what happens inside, and measures how long it takes."""
    token = current_step.set(name)
    began = time.monotonic()
    try:
        yield
    finally:
        current_step.reset(token)
        metrics.settlement_step.labels(name).observe(time.monotonic() - began)
