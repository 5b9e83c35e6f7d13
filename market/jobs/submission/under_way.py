"""Submissions that a process has taken in: those about which it has not decided yet, and those that
it has accepted a moment ago."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

MAX_OF_WALLET, MAX = 32, 128
"""Submissions under way of a wallet, and in all. Each takes some hundredths of a second:
nobody waits for many seconds."""

KEPT_SECONDS = 5.0
"""Seconds for which accepted ones are kept: longer than a backlog is used that may lack them."""


@dataclass(slots=True, eq=False)
class Submission:
    """``positions``: of the job, an estimate until they are known. ``can_pay``: whether the wallet
    was seen to have the money. ``accepted_at``: on the monotonic clock; none as long as it is not
    decided."""

    model_id: str
    wallet: str
    positions: int
    can_pay: bool = False
    accepted_at: float | None = None


class UnderWay:
    """Submissions of one process, counted on its event loop: from :meth:`has_room` to :meth:`enter`
    nothing may be awaited."""

    def __init__(self, of_wallet: int = MAX_OF_WALLET, in_all: int = MAX) -> None:
        self._of_wallet = of_wallet
        self._in_all = in_all
        self._undecided: Counter[str] = Counter()
        self._submissions: list[Submission] = []

    def __len__(self) -> int:
        """How many are not decided."""
        return self._undecided.total()

    def has_room(self, wallet: str) -> bool:
        """Whether the wallet may have one more."""
        return self._undecided[wallet] < self._of_wallet and len(self) < self._in_all

    @contextmanager
    def enter(self, submission: Submission) -> Iterator[None]:
        """Count one more until it is decided: accepted, if it ends without an error."""
        self._forget_old()
        # Who could pay a moment ago most likely can, and is not taken in to be refused later.
        submission.can_pay |= any(
            each.can_pay for each in self._submissions if each.wallet == submission.wallet
        )
        self._undecided[submission.wallet] += 1
        self._submissions.append(submission)
        try:
            yield
            submission.accepted_at = time.monotonic()
        except BaseException:
            self._submissions.remove(submission)
            raise
        finally:
            self._undecided[submission.wallet] -= 1
            if not self._undecided[submission.wallet]:
                del self._undecided[submission.wallet]

    def unseen(self, model_id: str, since: float) -> list[Submission]:
        """Those of a model that can pay, and that what was read of the jobs at that time does not
        contain."""
        return [
            each
            for each in self._submissions
            if each.model_id == model_id
            and each.can_pay
            and (each.accepted_at is None or each.accepted_at >= since)
        ]

    def _forget_old(self) -> None:
        oldest = time.monotonic() - KEPT_SECONDS
        self._submissions = [
            each
            for each in self._submissions
            if each.accepted_at is None or each.accepted_at > oldest
        ]
