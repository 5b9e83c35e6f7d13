"""Recovery from refusals, silence and stalls: nodes to avoid, and the epoch that follows."""

import time
from collections.abc import Collection

import structlog

from market.jobs import messaging
from market.nodes import live_registry
from mesh.wire import Ended, GenerationRefused, Ping, Pong
from mesh.wire.refusal_codes import LOST_STATE, known_code
from workers.supervisor import epochs
from workers.supervisor.errors import GenerationOver
from workers.supervisor.supervision import Supervision

log = structlog.get_logger()

KV_FULL_SECONDS = 0.5
"""Seconds for which a generation does not ask a node again whose KV cache was full."""

MOVED_SECONDS = 5.0
"""Seconds for which a generation does not ask a node again that no longer serves the span which its
route counted on: until the registry has the new span."""


class Recovery:
    """Decides for one generation which nodes its next route avoids, and begins the next epoch."""

    def __init__(self, supervision: Supervision) -> None:
        self._supervision = supervision
        self._tolerated_once: set[str] = set()
        self._silent_before: set[str] = set()
        self._failures = 0

    async def recover_from_refusal(self, refused: GenerationRefused) -> None:
        """A node of the route says that the generation cannot go on at ``refused.node_id``."""
        supervision, node_id, code = self._supervision, refused.node_id, known_code(refused)
        if node_id not in supervision.node_ids:
            return  # a node off the route is not avoided for what another says of it
        if code == "kv_full":
            supervision.route_finder.avoid(node_id, KV_FULL_SECONDS)
            await epochs.free_kv(supervision)
        elif code == "moved":
            supervision.route_finder.avoid(node_id, MOVED_SECONDS)
            moved = [hop for hop in supervision.route if hop.node_id == node_id]
            await epochs.close(supervision, moved, supervision.epoch)
            supervision.route = [hop for hop in supervision.route if hop not in moved]
        elif code in LOST_STATE and node_id not in self._tolerated_once:
            self._tolerated_once.add(node_id)
            log.warning("state_lost", request_id=supervision.id, node_id=node_id, code=code)
        elif code == "gap":  # a step did not arrive, or was not sent
            await self._penalise({node_id, supervision.previous_node(node_id)}, code)
        else:
            await self._penalise([node_id], code)
        await epochs.open_next(supervision, code, keep_kv=code not in LOST_STATE)

    async def recover_from_silence(self, responding: Collection[str]) -> bool:
        """Route around nodes whose keep-alive was missing at two polls in a row, if there is a way
        around; whether that was done.

        Args:
            responding: Nodes of the route whose keep-alive is there at this poll.
        """
        supervision = self._supervision
        silent = set(supervision.node_ids) - set(responding)
        failed = silent & self._silent_before
        self._silent_before = silent
        if not failed or await supervision.route_finder.find(supervision.route) is None:
            return False
        await self._evict(failed)
        await self._penalise(failed, "silent")
        await epochs.open_next(supervision, "silent")
        return True

    async def recover_from_stall(self) -> None:
        """No token for too long. The route stays if all its nodes answer, and have computed more
        than when they were last asked: a long prompt takes long, and so do many generations at
        once. Else the nodes that do not answer are avoided."""
        supervision = self._supervision
        answers = await self._ping()
        unanswered = [node_id for node_id in supervision.node_ids if node_id not in answers]
        await self._evict(unanswered)
        before, supervision.computed = supervision.computed, sum(answers.values())
        if supervision.computed > before and not unanswered:
            return
        await self._penalise(unanswered, "stalled")
        await epochs.open_next(supervision, "stalled")

    async def _ping(self) -> dict[str, int]:
        """Positions that each node of the route has computed; without those that do not answer."""
        supervision = self._supervision
        settings = supervision.generation_settings
        for node_id in supervision.node_ids:
            await messaging.send_to_inbox(
                supervision.redis,
                node_id,
                [Ping(supervision.id, supervision.epoch)],
                ttl=settings.stream_ttl,
            )
        answers: dict[str, int] = {}
        give_up = time.monotonic() + settings.ping
        while len(answers) < len(set(supervision.node_ids)) and time.monotonic() < give_up:
            for event in await supervision.read_events(settings.ping / 4):
                if isinstance(event, Pong):
                    answers[event.node_id] = event.positions
                elif isinstance(event, Ended):
                    await supervision.check_ended(event)
        return answers

    async def _evict(self, node_ids: Collection[str]) -> None:
        for node_id in node_ids:
            await live_registry.evict(self._supervision.redis, node_id, self._supervision.model.id)

    async def _penalise(self, node_ids: Collection[str], code: str) -> None:
        """Give nodes no generation for a while, and count a failure of this generation.

        Raises:
            GenerationOver: the generation has failed as often as it may.
        """
        supervision = self._supervision
        cooldown = supervision.resources.settings.discovery.cooldown
        for node_id in node_ids:
            supervision.route_finder.avoid(node_id, cooldown)
            await live_registry.cool_down(supervision.redis, node_id, seconds=cooldown)
            log.warning("node_penalised", request_id=supervision.id, node_id=node_id, code=code)
        self._failures += 1
        if self._failures >= supervision.generation_settings.max_failures:
            raise GenerationOver("failed", "stalled")
