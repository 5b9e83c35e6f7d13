"""How much a stage of a route may send in one epoch: counted, since a message that is right by
itself may be sent again and again.

An honest node cannot come near these limits; who passes them floods the next node's inbox, or the
supervisor's events, until others lose what is theirs.
"""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from mesh.wire import Step, Token
from mesh.wire.limits import (
    EVENT_BURST,
    EVENTS_PER_SECOND,
    MAX_TOKEN_TEXT,
    TOKEN_TEXT_ON_AVERAGE,
)
from mesh.wire.step_counts import StepCounts

STEPS_AHEAD = 512
"""Of which the tokens are not known yet: what was read of the generation is some tenths of a second
old."""

MAX_ENTRIES = 50_000
"""Stages of epochs that are remembered: far more than are under way at one process."""

StageKey = tuple[str, int, int]
"""A request id, an epoch and a stage."""


@dataclass(slots=True)
class _Sent:
    """What one stage has sent in one epoch: rows of hidden states; tokens, and their characters;
    seconds' worth of events."""

    rows: StepCounts = field(default_factory=StepCounts)
    tokens: int = 0
    characters: int = 0
    reports: int = 0
    events_free_at: float = 0.0


class MessageCounts:
    """Counts of one process. A node's messages pass one process at a time."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._stages: OrderedDict[StageKey, _Sent] = OrderedDict()

    def step(self, key: StageKey, step: Step, capacity: int, tokens: int | None) -> bool:
        """Count a step.

        Args:
            key: Who sends it.
            step: What is sent.
            capacity: Positions of the generation.
            tokens: That the generation has; none if that is not known.

        Returns:
            Whether the stage may still send it, see :class:`~mesh.wire.step_counts.StepCounts`.
        """
        steps = capacity if tokens is None else min(capacity, tokens + STEPS_AHEAD)
        return self._sent(key).rows.add(step, capacity, steps)

    def undo(self, key: StageKey, step: Step) -> None:
        """A step that was counted did not get through, and comes again."""
        self._sent(key).rows.undo(step)

    def token(self, key: StageKey, token: Token, capacity: int) -> bool:
        """Count a token; whether the stage may still send it: each twice, since it comes again if
        its answer is lost."""
        sent = self._sent(key)
        sent.tokens += 1
        sent.characters += len(token.text)
        return (
            sent.tokens <= 2 * capacity
            and sent.characters <= MAX_TOKEN_TEXT + 2 * TOKEN_TEXT_ON_AVERAGE * capacity
        )

    def event(self, key: StageKey) -> bool:
        """Count a refusal, an end, an answer to a ping, or that a prefix is there; whether the
        stage may send it now."""
        sent, now = self._sent(key), self._clock()
        free_at = max(now, sent.events_free_at) + 1 / EVENTS_PER_SECOND
        if free_at > now + EVENT_BURST / EVENTS_PER_SECOND:
            return False
        sent.events_free_at = free_at
        return True

    def report(self, key: StageKey) -> bool:
        """Count what the relay says of the stage to its supervisor; whether to say it: the first
        ends the epoch, and a few more make up for one that is lost."""
        sent = self._sent(key)
        sent.reports += 1
        return sent.reports <= EVENT_BURST

    def _sent(self, key: StageKey) -> _Sent:
        sent = self._stages.get(key)
        if sent is None:
            sent = self._stages[key] = _Sent()
            if len(self._stages) > MAX_ENTRIES:
                self._stages.popitem(last=False)
        else:
            self._stages.move_to_end(key)
        return sent
