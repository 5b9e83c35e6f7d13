"""The steps of a settlement, by name. All writes, and all requests to the chain, are in one."""

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
    """What a step has done for its batch, and so when the next step is due."""

    ADVANCED = auto()
    """The batch has another state: at once."""
    WAITING = auto()
    """The chain has to go on first: after a while."""
    STOPPED = auto()
    """Nothing is due, or nothing more can be done now: in the next run."""
    CONFIRMED = auto()
    """The batch is final and posted: at once."""


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
