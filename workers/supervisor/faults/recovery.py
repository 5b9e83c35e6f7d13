"""Recovery from refusals, silence and stalls: nodes to avoid, and the epoch that follows."""

from collections.abc import Collection

import structlog

from market.nodes import cooldowns, live_registry, refusals
from market.nodes.registered_node import trusts
from mesh.wire.refusal_codes import (
    GENERATION_FAILED,
    GRAMMAR_REFUSED,
    INPUT_FAULTS,
    LOST_STATE,
    NOT_NOW,
)
from workers.supervisor import epochs
from workers.supervisor.claims import Dispute, Failure, Fault, OwnFault
from workers.supervisor.errors import GenerationOver
from workers.supervisor.supervision import Supervision
from workers.supervisor.waiting_state import InputFault, Pending

log = structlog.get_logger()

KV_FULL_SECONDS = 0.5
"""Seconds for which a generation does not ask a node again whose KV cache was full; each time the
node says so again, twice as long."""

MOVED_SECONDS = 5.0
"""Seconds for which a generation does not ask a node again that no longer serves the span which its
route counted on: until the registry has the new span. Each time again, twice as long."""


class Recovery:
    """Decides for one generation which nodes its next route avoids, and begins the next epoch."""

    def __init__(self, supervision: Supervision) -> None:
        self._supervision = supervision
        self._silent_before: set[str] = set()
        self._state = supervision.state

    async def recover_from_fault(self, fault: Fault) -> None:
        """The generation cannot go on on its route.

        Raises:
            GenerationOver: it cannot go on at all.
        """
        supervision, code = self._supervision, fault.code
        tokens = await supervision.token_count()
        match fault:
            case OwnFault() if code == GRAMMAR_REFUSED:
                raise GenerationOver("failed", GRAMMAR_REFUSED)
            case OwnFault() if code in NOT_NOW:
                await self._accept_refusal(fault, tokens)
            case _ if code in LOST_STATE and self._tolerates(fault.node_id, "lost state"):
                log.warning(
                    "state_lost", request_id=supervision.id, node_id=fault.node_id, code=code
                )
            case Failure(node_id=node_id):
                if code in INPUT_FAULTS:
                    await self._count_user(node_id)
                    await self._note_input_fault(node_id, node_id, fault.before, tokens)
                await self._add_pending(tokens, {node_id: None})
                self._avoid_dispute(node_id, fault.before, code)
            case Dispute(node_id=node_id, accused=accused):
                if code in INPUT_FAULTS:  # which any node before them may have caused
                    await self._note_input_fault(accused, node_id, accused, tokens)
                else:
                    await self._add_pending(tokens, {node_id: accused, accused: node_id})
                self._avoid_dispute(node_id, accused, code)
            case _:
                await self._penalise([fault.node_id], code)
        await self._open_next(code, tokens, keep_kv=code not in LOST_STATE)

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
        await self._open_next("silent", await supervision.token_count())
        return True

    async def recover_from_no_answer(self, node_ids: Collection[str], gone: set[str]) -> None:
        """Nodes have not answered for longer than they may. ``gone``: those of them whose
        keep-alive is missing, too."""
        await self._evict(gone)
        await self._penalise(node_ids, "stalled")
        await self._open_next("stalled", await self._supervision.token_count())

    async def recover_from_stall(self, node_id: str, before: str | None, *, certain: bool) -> None:
        """There is no token for too long, and ``node_id`` is the first that lags behind.

        Messages get lost, so the first time that is nobody's fault.

        Args:
            node_id: Has not got on.
            before: Should have sent it what it needs; none if it needs nothing of others.
            certain: Whether it can be nobody but these two.
        """
        supervision = self._supervision
        tokens = await supervision.token_count()
        self._state.use_prefix = False
        if self._tolerates(node_id, "stall"):
            self._count_failure()
        elif before is None:
            await self._penalise([node_id], "stalled")
        else:
            if certain:
                await self._add_pending(tokens, {node_id: before, before: node_id})
            self._avoid_dispute(node_id, before, "stalled")
        await self._open_next("stalled", tokens)

    async def recover_from_wrong_end(self) -> None:
        """The edge says that it wrote more tokens than readers have: Redis has lost some, or the
        second time the edge is wrong."""
        edge = self._supervision.speakers[0]
        if not self._tolerates(edge, "wrong end"):
            await self._penalise([edge], "wrong_end")
        await self.recover_from_lost_tokens()

    async def recover_from_lost_tokens(self) -> None:
        """Redis has lost tokens: they are generated again."""
        await self._open_next("redis_lost", await self._supervision.token_count())

    async def count_pending(self, tokens: int) -> None:
        """Let count for all generations what this one, at so many tokens, has got past."""
        supervision = self._supervision
        if not self._state.pending:
            return
        redis, discovery = supervision.redis, supervision.resources.settings.discovery
        due = [each for each in self._state.pending if each.tokens < tokens]
        self._state.pending = [each for each in self._state.pending if each.tokens >= tokens]
        for each in due:
            if trusts(discovery, each.wallet):
                continue
            if each.opponent is None:
                await refusals.record(redis, discovery, each.node_id)
            elif await cooldowns.record_dispute(redis, discovery, each.node_id, each.opponent):
                log.warning("node_penalised", node_id=each.node_id, code="disputes")

    def _tolerates(self, node_id: str, what: str) -> bool:
        """Whether this is the first time in the generation that this befalls the node."""
        known = (node_id, what) in self._state.tolerated
        self._state.tolerated.add((node_id, what))
        return not known

    async def _accept_refusal(self, refused: OwnFault, tokens: int) -> None:
        """A node that offered free KV, or a span, does not take the generation now: the generation
        asks it again later each time, and for others, too, its offer counts as none for a while."""
        supervision, node_id = self._supervision, refused.node_id
        discovery = supervision.resources.settings.discovery
        if refused.code == "kv_full" and tokens > supervision.first_token:
            await self._penalise([node_id], refused.code)  # it has reserved the KV
            return
        first = KV_FULL_SECONDS if refused.code == "kv_full" else MOVED_SECONDS
        longest = max(first, discovery.cooldown)
        seconds = min(first * 2.0 ** self._state.refusals[node_id], longest)
        self._state.refusals[node_id] += 1
        supervision.route_finder.avoid(node_id, seconds)
        await refusals.record(supervision.redis, discovery, node_id)
        if refused.code == "kv_full":
            await epochs.free_kv(supervision)
        else:
            moved = [hop for hop in supervision.route if hop.node_id == node_id]
            await epochs.close(supervision, moved, supervision.epoch)
            supervision.route = [hop for hop in supervision.route if hop not in moved]

    async def _count_user(self, node_id: str) -> None:
        """A node has failed on the input of this generation's user, by its own word."""
        supervision = self._supervision
        discovery = supervision.resources.settings.discovery
        wallet = (await supervision.wallets()).get(node_id)
        if wallet is not None and not trusts(discovery, wallet):
            user = supervision.job.user_wallet
            await refusals.record_failure(supervision.redis, discovery, node_id, user)

    async def _note_input_fault(
        self, at: str, node_id: str, before: str | None, tokens: int
    ) -> None:
        """An error that the prompt may have caused, or either of two nodes. What has failed twice
        at one point, where no one wallet can have caused both, is not tried a third time.

        Args:
            at: The node whose layers raised it.
            node_id: Says so.
            before: Has sent the input; none at the edge.
            tokens: How many there were.

        Raises:
            GenerationOver: the error came before, and others' nodes had it, or there are none.
        """
        supervision, finder = self._supervision, self._supervision.route_finder
        discovery = supervision.resources.settings.discovery
        wallets = {
            each: wallet
            for each, wallet in (await supervision.wallets()).items()
            if each in (node_id, before) and not trusts(discovery, wallet)
        }
        finder.avoid_wallets(wallets)
        [hop] = [hop for hop in supervision.route if hop.node_id == at]
        fault = InputFault(tokens, hop, frozenset(wallets.values()))
        earlier = [each for each in self._state.input_faults if each.repeats(fault)]
        self._state.input_faults.append(fault)
        if not earlier:
            return
        common = [each.suspects & fault.suspects for each in earlier]
        both = {wallet for suspects in common for wallet in suspects}
        if all(common) and await finder.bar(both, supervision.route):
            return
        raise GenerationOver("failed", GENERATION_FAILED)

    async def _add_pending(self, tokens: int, opponents: dict[str, str | None]) -> None:
        """Note against whom this counts, if the generation gets past it: nodes, and the nodes that
        they are in dispute with."""
        wallets = await self._supervision.wallets()
        self._state.pending += [
            Pending(tokens, node_id, wallets[node_id], opponent and wallets[opponent])
            for node_id, opponent in opponents.items()
            if {node_id, opponent or node_id} <= wallets.keys()
        ]

    def _avoid_dispute(self, node_id: str, other: str | None, code: str) -> None:
        """Nobody knows which of two nodes is at fault, or whether a node is: this generation
        avoids them, as far as there is a route without."""
        supervision = self._supervision
        cooldown = supervision.resources.settings.discovery.cooldown
        supervision.route_finder.avoid_dispute(node_id, other, cooldown)
        log.warning(
            "nodes_in_dispute", request_id=supervision.id, node_id=node_id, other=other, code=code
        )
        self._count_failure()

    async def _evict(self, node_ids: Collection[str]) -> None:
        for node_id in node_ids:
            await live_registry.evict(self._supervision.redis, node_id, self._supervision.model.id)

    async def _penalise(self, node_ids: Collection[str], code: str) -> None:
        """Give nodes no generation for a while, for what the platform saw of them or they said of
        themselves, and count a failure of this generation."""
        supervision = self._supervision
        cooldown = supervision.resources.settings.discovery.cooldown
        for node_id in node_ids:
            supervision.route_finder.avoid(node_id, cooldown)
            await cooldowns.cool_down(supervision.redis, node_id, seconds=cooldown)
            log.warning("node_penalised", request_id=supervision.id, node_id=node_id, code=code)
        self._count_failure()

    def _count_failure(self) -> None:
        """Count a failure of this generation.

        Raises:
            GenerationOver: the generation has failed as often as it may.
        """
        self._state.failures += 1
        if self._state.failures >= self._supervision.generation_settings.max_failures:
            raise GenerationOver("failed", "stalled")

    async def _open_next(self, reason: str, tokens: int, *, keep_kv: bool = True) -> None:
        """Begin the next epoch.

        Raises:
            GenerationOver: too many routes in a row have brought no token.
        """
        supervision = self._supervision
        state = self._state
        state.rounds = state.rounds + 1 if tokens == state.tokens_before else 1
        state.tokens_before = tokens
        if state.rounds >= supervision.generation_settings.max_rounds:
            raise GenerationOver("failed", "stalled")
        await epochs.open_next(supervision, reason, keep_kv=keep_kv)
