"""The phases of a settlement, by name. All writes, and all requests to the chain, are in one."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from enum import Enum, StrEnum, auto

from market import metrics


class SettlementPhase(StrEnum):
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


class PhaseResult(Enum):
    """What a phase has done for its batch, and so when the next phase is due."""

    ADVANCED = auto()
    """The batch has another state: at once."""
    WAITING = auto()
    """The chain has to go on first: after a while."""
    STOPPED = auto()
    """Nothing is due, or nothing more can be done now: in the next run."""
    CONFIRMED = auto()
    """The batch is final and posted: at once."""


current_phase: ContextVar[SettlementPhase | None] = ContextVar("settlement_phase", default=None)


@contextmanager
def phase(name: SettlementPhase) -> Iterator[None]:
    """Name the phase of what happens inside, and measure how long it takes."""
    token = current_phase.set(name)
    began = time.monotonic()
    try:
        yield
    finally:
        current_phase.reset(token)
        metrics.settlement_step.labels(name).observe(time.monotonic() - began)
