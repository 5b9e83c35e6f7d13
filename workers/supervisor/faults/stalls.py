"""Watches one generation for a stall: nodes that do not answer, or do not advance, or only say that
they do."""

import time
from collections.abc import Collection, Sequence

from market.jobs import messaging
from market.settings.generation import GenerationSettings
from mesh.wire import Ping, Pong
from workers.supervisor.faults.recovery import Recovery
from workers.supervisor.supervision import Supervision


class RouteWork:
    """What the nodes of a route have computed, as far as their word counts: each node up to what
    the one before it has, since nobody computes what was not sent."""

    def __init__(self, node_ids: Sequence[str]) -> None:
        self._said = dict.fromkeys(node_ids, 0)

    def record_answer(self, node_id: str, positions: int) -> None:
        """A node says that it has computed so many positions."""
        if node_id in self._said:
            self._said[node_id] = positions

    def credited(self, known: int) -> list[int]:
        """Positions that count of each node. ``known``: those of the tokens that there are."""
        counted, upto = [], known
        for said in self._said.values():
            upto = max(0, min(upto, said))
            counted.append(upto)
        return counted

    def first_behind(self, known: int) -> int | None:
        """The first stage that has not computed what the one before it has; none if all have
        computed all."""
        return next((stage for stage, n in enumerate(self.credited(known)) if n < known), None)


class StallWatch:
    """Asks a route's nodes how far they are when there is no token, and judges by their answers.

    A node inside a long forward pass does not answer, so while its keep-alive is there it is given
    time (``generation.forward``). Whatever the nodes say, a token is due when the prompt could have
    been computed at ``generation.prefill_rate``.
    """

    def __init__(self, supervision: Supervision, recovery: Recovery) -> None:
        self._supervision = supervision
        self._recovery = recovery
        self._epoch = -1
        self._tokens = 0
        self._waiting_since = self._ask_at = 0.0
        self._asked_at: float | None = None
        self._unanswered: dict[str, float] = {}
        self._work = RouteWork([])
        self._computed = 0

    def record_answer(self, pong: Pong) -> None:
        """A node answers."""
        self._unanswered.pop(pong.node_id, None)
        self._work.record_answer(pong.node_id, pong.positions)

    async def check(self, tokens: int, responding: Collection[str]) -> None:
        """Ask, or judge, if it is time to.

        Args:
            tokens: That readers have.
            responding: Nodes whose keep-alive is there.
        """
        now = time.monotonic()
        if (self._epoch, self._tokens) != (self._supervision.epoch, tokens):
            self._begin(tokens, now)
        elif self._asked_at is None:
            if now >= self._ask_at:
                await self._ask(now)
        elif not self._unanswered or now > self._asked_at + self._settings.ping:
            await self._judge(set(responding), now)

    @property
    def _settings(self) -> GenerationSettings:
        return self._supervision.generation_settings

    def _begin(self, tokens: int, now: float) -> None:
        """There is a new token, or a new route."""
        self._epoch, self._tokens = self._supervision.epoch, tokens
        self._waiting_since = now
        self._unanswered = {}
        self._work, self._computed = RouteWork(self._supervision.node_ids), 0
        self._ask_later(now)

    def _ask_later(self, now: float) -> None:
        self._asked_at, self._ask_at = None, now + self._settings.stall

    async def _ask(self, now: float) -> None:
        """Ping all nodes, also those that have not answered yet: a ping may have been lost."""
        supervision = self._supervision
        self._asked_at = now
        for node_id in supervision.node_ids:
            self._unanswered.setdefault(node_id, now)
            await messaging.send_to_inbox(
                supervision.redis,
                node_id,
                [Ping(supervision.id, supervision.epoch)],
                ttl=self._settings.stream_ttl,
            )

    async def _judge(self, responding: set[str], now: float) -> None:
        gone = self._unanswered.keys() - responding
        overdue = {n for n, at in self._unanswered.items() if now - at > self._settings.forward}
        if gone or overdue:
            await self._recovery.recover_from_no_answer(gone | overdue, gone)
            return
        known = self._supervision.job.prompt_tokens + self._tokens
        before, self._computed = self._computed, sum(self._work.credited(known))
        advances = self._computed > before or bool(self._unanswered)
        if advances and now - self._waiting_since < self._patience(known):
            self._ask_later(now)
            return
        nodes, stage = self._supervision.node_ids, self._work.first_behind(known)
        if stage == 0 or len(nodes) == 1:
            await self._recovery.recover_from_stall(nodes[0], None, certain=True)
        elif stage is not None:
            await self._recovery.recover_from_stall(nodes[stage], nodes[stage - 1], certain=True)
        else:  # All computed, and the edge has no result: any node may have asked for none.
            certain = len(nodes) == 2
            await self._recovery.recover_from_stall(nodes[0], nodes[-1], certain=certain)

    def _patience(self, known: int) -> float:
        """Seconds within which a token is due on this route."""
        settings = self._settings
        first = self._tokens == self._supervision.first_token
        positions = known if first else 1
        return settings.stall + settings.forward + positions / settings.prefill_rate
