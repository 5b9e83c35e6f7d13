"""Refusals, silence and stalls: which node is put aside for it, and the epoch that follows."""

import time
from collections.abc import Collection

import structlog

from market.jobs import messaging
from market.nodes import live_registry
from mesh.wire import Ended, Ping, Pong, Refused
from mesh.wire.refusal_codes import LOST, code_of
from workers.supervisor import epochs
from workers.supervisor.errors import GenerationOver
from workers.supervisor.session import Session

log = structlog.get_logger()

KV_FULL_SECONDS = 0.5
"""Seconds for which a generation does not ask a node again whose KV cache was full."""

MOVED_SECONDS = 5.0
"""Seconds for which a generation does not ask a node again that no longer serves the span which its
route counted on: until the registry has the new span."""


class Recovery:
    """Decides for one generation which nodes its next route avoids, and begins the next epoch."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._excused_once: set[str] = set()
        self._silent_before: set[str] = set()
        self._failures = 0

    async def recover_from_refusal(self, refused: Refused) -> None:
        """A node of the route says that the generation cannot go on at ``refused.node_id``."""
        session, node_id, code = self._session, refused.node_id, code_of(refused)
        if node_id not in session.node_ids:
            return  # a node off the route is not put aside for what another says of it
        if code == "kv_full":
            session.route_finder.avoid(node_id, KV_FULL_SECONDS)
            await epochs.free_kv(session)
        elif code == "moved":
            session.route_finder.avoid(node_id, MOVED_SECONDS)
            moved = [hop for hop in session.route if hop.node_id == node_id]
            await epochs.close(session, moved, session.epoch)
            session.route = [hop for hop in session.route if hop not in moved]
        elif code in LOST and node_id not in self._excused_once:
            self._excused_once.add(node_id)
            log.warning("state_lost", request_id=session.id, node_id=node_id, code=code)
        elif code == "gap":  # a step did not arrive, or was not sent
            await self._penalise({node_id, session.previous_node(node_id)}, code)
        else:
            await self._penalise([node_id], code)
        await epochs.open_next(session, code, keep_kv=code not in LOST)

    async def recover_from_silence(self, responding: Collection[str]) -> bool:
        """Route around nodes whose keep-alive was missing at two polls in a row, if there is a way
        around; whether that was done.

        Args:
            responding: Nodes of the route whose keep-alive is there at this poll.
        """
        session = self._session
        silent = set(session.node_ids) - set(responding)
        failed = silent & self._silent_before
        self._silent_before = silent
        if not failed or await session.route_finder.find(session.route) is None:
            return False
        await self._evict(failed)
        await self._penalise(failed, "silent")
        await epochs.open_next(session, "silent")
        return True

    async def recover_from_stall(self) -> None:
        """No token for too long. The route stays if all its nodes answer, and have computed more
        than when they were last asked: a long prompt takes long, and so do many generations at
        once. Else the nodes that do not answer are put aside."""
        session = self._session
        answers = await self._ping()
        unanswered = [node_id for node_id in session.node_ids if node_id not in answers]
        await self._evict(unanswered)
        before, session.computed = session.computed, sum(answers.values())
        if session.computed > before and not unanswered:
            return
        await self._penalise(unanswered, "stalled")
        await epochs.open_next(session, "stalled")

    async def _ping(self) -> dict[str, int]:
        """Positions that each node of the route has computed; without those that do not answer."""
        session, limits = self._session, self._session.limits
        for node_id in session.node_ids:
            await messaging.send_to_inbox(
                session.redis, node_id, [Ping(session.id, session.epoch)], ttl=limits.stream_ttl
            )
        answers: dict[str, int] = {}
        give_up = time.monotonic() + limits.ping
        while len(answers) < len(set(session.node_ids)) and time.monotonic() < give_up:
            for event in await session.read_events(limits.ping / 4):
                if isinstance(event, Pong):
                    answers[event.node_id] = event.positions
                elif isinstance(event, Ended):
                    await session.check_ended(event)
        return answers

    async def _evict(self, node_ids: Collection[str]) -> None:
        for node_id in node_ids:
            await live_registry.evict(self._session.redis, node_id, self._session.model.id)

    async def _penalise(self, node_ids: Collection[str], code: str) -> None:
        """Give nodes no generation for a while, and count a failure of this generation.

        Raises:
            GenerationOver: the generation has failed as often as it may.
        """
        session = self._session
        cooldown = session.resources.settings.discovery.cooldown
        for node_id in node_ids:
            session.route_finder.avoid(node_id, cooldown)
            await live_registry.cool_down(session.redis, node_id, seconds=cooldown)
            log.warning("node_penalised", request_id=session.id, node_id=node_id, code=code)
        self._failures += 1
        if self._failures >= session.limits.max_failures:
            raise GenerationOver("failed", "stalled")
