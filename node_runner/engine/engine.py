"""Continuous batching: every step packs what waits, of all generations, into one forward."""

import sys
import time
from collections.abc import Iterable

import torch

from mesh.errors import WireError
from mesh.wire import (
    Close,
    Ended,
    Halt,
    Message,
    Open,
    OpenEdge,
    Ping,
    Pong,
    Ready,
    Refused,
    Step,
    Steps,
)
from mesh.wire.limits import MAX_STEP_ROWS
from node_runner.engine.attention.interface import Segment
from node_runner.engine.attention.kv_cache import KVBlockPool, KVCache
from node_runner.engine.attention.prefix_cache import PrefixCache
from node_runner.engine.attention.ragged_batch import RaggedBatch
from node_runner.engine.decoding.draft_model import DraftModel
from node_runner.engine.device.tensors import NAMES, is_finite
from node_runner.engine.edge import Edge
from node_runner.engine.generation import Decoding, Generation, WorkItem
from node_runner.engine.model.span_model import SpanModel
from node_runner.engine.output_batcher import OutputBatcher
from node_runner.engine.replay_buffer import ReplayBuffer
from node_runner.engine.scheduler import PREFILL_CHUNK, Scheduler
from node_runner.engine.tensor_codec import from_steps
from node_runner.outputs import EngineOutput, NodeMessage


class Engine:
    """Turns messages into results. Not thread-safe; one caller steps it.

    Args:
        span: The layers.
        node_id: This node.
        kv_budget_bytes: Room for all caches; never exceeded.
        wire_dtype: What hidden states travel as (:data:`mesh.wire.DTYPES`); the model's own if
            not given.
        speculate: Whether the edge guesses ahead where that pays.
        draft: All layers of a small model that guesses, on the edge.
        max_generations: How many the node admits at once; as many as there is room for where not
            given.
    """

    def __init__(
        self,
        span: SpanModel,
        *,
        node_id: str,
        kv_budget_bytes: int,
        wire_dtype: str | None = None,
        speculate: bool = True,
        draft: SpanModel | None = None,
        max_generations: int | None = None,
    ) -> None:
        self._max_generations = sys.maxsize if max_generations is None else max_generations
        self._span = span
        self._node_id = node_id
        self._wire_dtype = wire_dtype or NAMES[span.dtype]
        shapes = [span.kv_shape] if draft is None else [span.kv_shape, draft.kv_shape]
        positions = kv_budget_bytes // sum(shape.bytes_per_position for shape in shapes)
        self.pool = KVBlockPool(span.kv_shape, positions * span.kv_shape.bytes_per_position)
        self.prefixes = PrefixCache(self.pool)
        drafter = draft and DraftModel(draft, positions=positions)
        self.edge = Edge(span, speculate=speculate, draft=drafter)
        self.generations: dict[str, Generation] = {}
        self.elsewhere = 0
        """Generations that the node's other engines hold; they count for ``max_generations``."""
        self._scheduler = Scheduler()
        self._forwards: list[tuple[int, int]] = []

    @property
    def busy(self) -> bool:
        """Whether another step has something to do without new messages."""
        return bool(self._scheduler) or self.edge.busy or any(map(_feedable, self._alive()))

    def room(self) -> int:
        """Positions that there is KV room for: none while it admits no more generations. Safe to
        call from another thread."""
        if self._full:
            return 0
        free = self.pool.budget_bytes - self.pool.used_bytes + self.prefixes.kept_bytes
        return free // self.pool.shape.bytes_per_position

    def capacity(self) -> int:
        """Positions that there is KV room for while no generation is here."""
        return self.pool.budget_bytes // self.pool.shape.bytes_per_position

    def step(self, messages: Iterable[Message]) -> list[EngineOutput]:
        """Take messages in, run one forward over what waits, give results out."""
        results = OutputBatcher(self._wire_dtype)
        for message in messages:
            self._receive(message, results)
        for generation, tokens, ended in self.edge.sample():
            results.add(*tokens)
            if ended is not None:
                results.add(ended)
                self._drop(generation)
        self._feed()
        self._run(results)
        return results.take()

    def take_forwards(self) -> list[tuple[int, int]]:
        """Generations and positions of each forward since the last call."""
        taken, self._forwards = self._forwards, []
        return taken

    def abandon(self, code: str) -> list[EngineOutput]:
        """Give all generations up; their supervisors are told why, and go on elsewhere."""
        results = OutputBatcher(self._wire_dtype)
        for generation in list(self.generations.values()):
            results.add(self._refusal(generation, code))
            self._drop(generation)
        return results.take()

    def expire(self) -> None:
        """Forget generations whose supervisor never came back to close them."""
        now = time.monotonic()
        for generation in [g for g in self.generations.values() if g.expires_at < now]:
            self._drop(generation)

    @property
    def _full(self) -> bool:
        return len(self.generations) + self.elsewhere >= self._max_generations

    def _alive(self) -> list[Generation]:
        return [generation for generation in self.generations.values() if not generation.over]

    def _receive(self, message: Message, results: OutputBatcher) -> None:
        if isinstance(message, Steps):
            self._arrive(message, results)
            return
        if isinstance(message, Open | OpenEdge):
            self._open(message, results)
            return
        if isinstance(message, Ping):
            known = self.generations.get(message.request_id)
            computed = 0 if known is None else known.cache.length
            results.add(Pong(message.request_id, message.epoch, self._node_id, computed))
            return
        generation = self.generations.get(message.request_id)
        if generation is None:
            return
        match message:
            case Close() if generation.epoch <= message.epoch:
                self._drop(generation)
            case Halt() if generation.epoch == message.epoch:
                generation.over = True
            case Ready() if generation.epoch == message.epoch and generation.decoding is not None:
                _note_ready(generation, generation.decoding, message)

    def _open(self, message: Open | OpenEdge, results: OutputBatcher) -> None:
        known = self.generations.get(message.request_id)
        if known is not None and known.epoch >= message.epoch:
            return
        sent = ReplayBuffer()
        cache: KVCache | None
        if message.resume.keep:
            if known is None or known.cache.length < message.resume.known:
                results.add(self._refusal(message, "forgotten"))
                return
            known.over = True
            cache, sent = known.cache, known.sent
        else:
            if known is not None:
                self._drop(known)
            full = self._full
            cache = (
                None
                if full
                else self.prefixes.reserve(message.route_position.capacity, message.prefix)
            )
        if cache is None:
            results.add(self._refusal(message, "kv_full"))
            return
        generation = Generation(
            request_id=message.request_id,
            epoch=message.epoch,
            place=message.route_position,
            resume=message.resume,
            prefix=message.prefix,
            cache=cache,
            expires_at=time.monotonic() + message.route_position.expires_in,
            decoding=None,
            sent=sent,
        )
        self.generations[message.request_id] = generation
        if isinstance(message, OpenEdge):
            self._begin(generation, message, results)
        elif message.prefix:
            ready = Ready(
                generation.request_id, generation.epoch, message.route_position.stage, cache.length
            )
            results.add(NodeMessage(message.route_position.edge_node, ready))
        if message.resume.keep and message.resume.replay:
            self._replay(generation, results)

    def _begin(self, generation: Generation, message: OpenEdge, results: OutputBatcher) -> None:
        unready = set(range(1, message.route_position.stages)) if message.prefix else set()
        decoding = self.edge.open(message.request_id, message.prompt, unready=unready)
        decoding.fed = min(generation.cache.length, len(decoding.tokens) - 1)
        generation.decoding = decoding
        if decoding.stopped:
            # What readers have is all there is: only the news of the end was lost.
            ended = Ended(message.request_id, message.epoch, "stop", decoding.generated)
            results.add(ended)
            self._drop(generation)

    def _replay(self, generation: Generation, results: OutputBatcher) -> None:
        """Give the next node, which is new, all that it would have been sent before."""
        hidden = generation.sent.upto(generation.resume.known)
        if hidden is not None:
            for position in range(0, len(hidden), PREFILL_CHUNK):
                chunk = hidden[position : position + PREFILL_CHUNK]
                self._send(generation, position, chunk, results, replay=True)
        elif generation.decoding is not None:
            generation.decoding.fed = 0  # the edge has the tokens: it computes it all again
        else:
            generation.over = True
            results.add(self._refusal(generation, "no_replay"))

    def _arrive(self, message: Steps, results: OutputBatcher) -> None:
        span = self._span
        expected = [self._expecting(step) for step in message.steps]
        if not any(expected):
            return
        try:
            hidden = from_steps(
                message, width=span.hidden_size, dtype=span.dtype, device=span.device
            )
        except WireError as error:
            for generation in filter(None, expected):
                self._blame_sender(generation, error.code, results)
            return
        rows = hidden.split_with_sizes([step.rows for step in message.steps])
        for step, generation, own in zip(message.steps, expected, rows, strict=True):
            if generation is None:
                continue
            waiting = self._scheduler.waiting_rows(generation)
            if step.rows > MAX_STEP_ROWS or waiting > 2 * generation.place.capacity:
                self._blame_sender(generation, "flood", results)
            elif generation.decoding is None:
                self._scheduler.add(
                    WorkItem(generation, step.position, step.wanted, step.replay, own)
                )
            elif is_finite(own):
                self.edge.take(generation, step.position, own)
            else:
                self._blame_sender(generation, "not_finite", results)

    def _expecting(self, step: Step) -> Generation | None:
        """The generation that the step is of, if it is of this epoch."""
        generation = self.generations.get(step.request_id)
        if generation is None or generation.epoch != step.epoch or generation.over:
            return None
        return generation

    def _feed(self) -> None:
        idle = [g for g in self._alive() if not self._scheduler.waits(g)]
        for work in self.edge.feed(idle):
            self._scheduler.add(work)

    def _run(self, results: OutputBatcher) -> None:
        alive = self._alive()
        stages = max((generation.place.stages for generation in alive), default=1)
        pack = self._scheduler.take(share=-(-len(alive) // stages))
        pack = [work for work in pack if self._fits(work, results)]
        pack.sort(key=lambda work: work.rows)  # equals attend together
        hidden = self._inputs(pack)
        if hidden is not None and not is_finite(hidden):
            pack = [work for work in pack if self._is_finite(work, results)]
            hidden = self._inputs(pack)
        if hidden is None:
            return
        packed = RaggedBatch(
            [Segment(work.generation.cache, work.rows, work.position) for work in pack]
        )
        output = self._span.forward(hidden, packed)
        self._forwards.append((len(pack), packed.rows))
        sound = is_finite(output)
        rows = output.split_with_sizes([work.rows for work in pack])
        for work, own in zip(pack, rows, strict=True):
            if sound or is_finite(own):
                self._pass_on(work, own, results)
            else:
                work.generation.over = True
                self.pool.scrub(work.generation.cache)
                results.add(self._refusal(work.generation, "not_finite"))

    def _fits(self, work: WorkItem, results: OutputBatcher) -> bool:
        """Whether the cache has come so far, and has room. Position is the truth: less than it
        has is a repetition; more is a step that never arrived."""
        generation = work.generation
        if work.end > generation.place.capacity:
            self._blame_sender(generation, "capacity", results)
        elif work.position > generation.cache.length:
            generation.over = True
            results.add(self._refusal(generation, "gap"))
        return not generation.over

    def _is_finite(self, work: WorkItem, results: OutputBatcher) -> bool:
        if work.hidden is None or is_finite(work.hidden):
            return True
        self._blame_sender(work.generation, "not_finite", results)
        return False

    def _inputs(self, pack: list[WorkItem]) -> torch.Tensor | None:
        if not pack:
            return None
        if pack[0].hidden is None:
            return self._span.embed(
                [token for work in pack for token in work.token_ids],
                [position for work in pack for position in range(work.position, work.end)],
            )
        hidden = [work.hidden for work in pack if work.hidden is not None]
        return hidden[0] if len(hidden) == 1 else torch.cat(hidden)

    def _pass_on(self, work: WorkItem, rows: torch.Tensor, results: OutputBatcher) -> None:
        generation, position = work.generation, work.position
        if not generation.last:
            generation.sent.put(position, rows)
            if generation.resume.replay or not work.replay:
                self._send(generation, position, rows, results, work.wanted, replay=work.replay)
        elif work.wanted:
            position, rows = work.end - work.wanted, rows[-work.wanted :]
            if generation.first:
                self.edge.take(generation, position, rows)
            else:
                self._send(generation, position, rows, results, work.wanted)

    def _send(
        self,
        generation: Generation,
        position: int,
        rows: torch.Tensor,
        results: OutputBatcher,
        wanted: int = 0,
        *,
        replay: bool = False,
    ) -> None:
        step = Step(generation.request_id, generation.epoch, position, len(rows), wanted, replay)
        results.send(generation.place.next_node, step, rows)

    def _blame_sender(self, generation: Generation, code: str, results: OutputBatcher) -> None:
        """A step that cannot be right. What came before it is: the cache may serve the next
        epoch."""
        generation.over = True
        results.add(self._refusal(generation, code, blamed=generation.place.previous_node))

    def _refusal(
        self, what: Open | OpenEdge | Generation, code: str, blamed: str | None = None
    ) -> Refused:
        return Refused(what.request_id, what.epoch, blamed or self._node_id, code)

    def _drop(self, generation: Generation) -> None:
        generation.over = True
        if self.generations.get(generation.request_id) is generation:
            del self.generations[generation.request_id]
            self.prefixes.release(generation.cache, generation.prefix)
            self.edge.close(generation)


def _feedable(generation: Generation) -> bool:
    return generation.decoding is not None and generation.decoding.unfed


def _note_ready(generation: Generation, decoding: Decoding, message: Ready) -> None:
    """The prompt begins where the cache of the node that has least of it ends."""
    if message.stage in decoding.unready:
        decoding.unready.discard(message.stage)
        decoding.fed = max(0, min(decoding.fed, message.positions))
