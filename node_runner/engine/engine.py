"""Continuous batching of one span: each step runs what waits, of all generations, as one batch."""

import sys
from collections.abc import Iterable
from functools import partial

import structlog
import torch

from mesh.wire import Message, Open, OpenEdge, Steps
from mesh.wire.refusal_codes import GENERATION_FAILED
from node_runner.engine.admission import Admission
from node_runner.engine.attention.kv_cache import KVBlockPool
from node_runner.engine.attention.prefix_cache import PrefixCache
from node_runner.engine.decoding.draft_model import DraftModel
from node_runner.engine.device.isolation import described, each_isolated
from node_runner.engine.device.tensors import NAMES
from node_runner.engine.edge import Edge, Sampled
from node_runner.engine.generation import WorkItem
from node_runner.engine.generation_table import GenerationTable
from node_runner.engine.model.span_model import SpanModel
from node_runner.engine.model_runner import ModelOutput, ModelRunner
from node_runner.engine.output_batcher import OutputBatcher
from node_runner.engine.receiver import Receiver
from node_runner.engine.refusals import (
    FailedGenerations,
    check_position,
    refuse,
    refuse_output,
)
from node_runner.engine.scheduler import Scheduler
from node_runner.outputs import EngineOutput

log = structlog.get_logger()


class Engine:
    """Turns the messages that a node receives into its outputs. Not thread-safe: one thread calls
    `step`.

    No phase of a step calls anything that works for a generation but by
    :mod:`node_runner.engine.device.isolation`: an exception ends the generation whose work raises,
    and no other. An error of the device, or a lack of memory, is raised.

    Args:
        span: The layers that it runs.
        node_id: The node's id, which refusals and answers carry.
        kv_budget_bytes: Bytes for the KV caches of all generations, of the draft model too; never
            exceeded.
        wire_dtype: The dtype in which hidden states are sent (:data:`mesh.wire.DTYPES`); the
            model's own if not given.
        speculate: Whether the edge drafts tokens (speculative decoding) where that pays.
        draft_span: All layers of a small model that drafts tokens on the edge.
        max_generations: Generations that the node admits at once; limited by the KV budget alone
            if not given.
    """

    def __init__(
        self,
        span: SpanModel,
        *,
        node_id: str,
        kv_budget_bytes: int,
        wire_dtype: str | None = None,
        speculate: bool = True,
        draft_span: SpanModel | None = None,
        max_generations: int | None = None,
    ) -> None:
        self.span = span
        self._node_id = node_id
        self._wire_dtype = wire_dtype or NAMES[span.dtype]
        spans = [span] if draft_span is None else [span, draft_span]
        positions = kv_budget_bytes // sum(each.kv_shape.bytes_per_position for each in spans)
        draft_model = None if draft_span is None else DraftModel(draft_span, positions=positions)
        self.pool = KVBlockPool(span.kv_shape, positions * span.kv_shape.bytes_per_position)
        self.prefix_cache = PrefixCache(self.pool)
        self._failed = FailedGenerations()
        fail = self._failed.add
        self.edge = Edge(span, speculate=speculate, draft_model=draft_model, fail=fail)
        limit = sys.maxsize if max_generations is None else max_generations
        self.generations = GenerationTable(self.prefix_cache, self.edge, limit=limit)
        self._scheduler = Scheduler()
        admission = Admission(span, self.generations, self.prefix_cache, self.edge, node_id)
        self._receiver = Receiver(
            span, self.generations, self._scheduler, self.edge, admission, node_id, fail
        )
        self._runner = ModelRunner(span, node_id, fail)

    def step(self, messages: Iterable[Message]) -> list[EngineOutput]:
        """Receive messages, sample tokens, schedule a batch, run it through the span, emit outputs.

        Args:
            messages: What came since the last step, in its order; may be none.

        Returns:
            Hidden states for other nodes first; then tokens, ends, refusals and answers, in the
            order of the phases; then refusals of what raised an exception.
        """
        outputs = OutputBatcher(self._wire_dtype, self._failed.add)
        self._receive(messages, outputs)
        self._sample(outputs)
        batch = self._schedule(outputs)
        computed = self._runner.run(batch)
        self._emit(computed, outputs)
        return outputs.pop_outputs() + self._refuse_failed()

    @property
    def busy(self) -> bool:
        """Whether another step has something to do without new messages."""
        waiting = bool(self._scheduler) or self.edge.busy
        return waiting or any(g.schedulable for g in self.generations.running())

    def free_kv(self) -> int:
        """Positions for which there is free KV; 0 while the node admits no more generations. Safe
        to call from another thread."""
        if self.generations.full:
            return 0
        free = self.pool.budget_bytes - self.pool.used_bytes + self.prefix_cache.evictable_bytes
        return free // self.pool.shape.bytes_per_position

    def kv_capacity(self) -> int:
        """Positions for which there is KV while no generation is here. Safe to call from another
        thread."""
        return self.pool.budget_bytes // self.pool.shape.bytes_per_position

    @property
    def batch_invariant(self) -> bool:
        """Whether a generation's tokens are the same whoever runs beside: in float32 sums differ by
        too little to change one."""
        return self.span.batch_invariant or self.span.dtype == torch.float32

    def pop_forwards(self) -> list[tuple[int, int]]:
        """Generations and positions of each forward pass since the last call."""
        return self._runner.pop_forwards()

    def abort_all(self, code: str) -> list[EngineOutput]:
        """End all generations here, and refuse them with ``code``, so that their supervisors move
        them to other nodes."""
        ended = list(self.generations.values())
        each_isolated(self.generations.close, ended, self._failed.add)
        return [refuse(generation, code, node_id=self._node_id) for generation in ended]

    def expire(self) -> None:
        """Close generations that their supervisors have not closed in time."""
        each_isolated(self.generations.close, self.generations.expired(), self._failed.add)

    def _refuse_failed(self) -> list[EngineOutput]:
        """Refusals of generations that have failed, unless they are here no more."""
        return [
            refuse_output(generation, code, node_id=self._node_id)
            for generation, code in self._failed.pop()
            if self.generations.get(generation.request_id) is generation
        ]

    def _receive(self, messages: Iterable[Message], outputs: OutputBatcher) -> None:
        """Messages open and close generations; hidden states wait for a batch, or at the edge for
        the sampler."""
        each_isolated(
            partial(self._receiver.receive, outputs=outputs),
            messages,
            lambda message, error: self._fail_message(message, error, outputs),
        )

    def _fail_message(self, message: Message, error: BaseException, outputs: OutputBatcher) -> None:
        """Stop the generations that a message is about; of one that it could not even open, it is
        refused."""
        parts = message.steps if isinstance(message, Steps) else [message]
        about = dict.fromkeys((part.request_id, part.epoch) for part in parts)
        here = [self.generations.at_epoch(*each) for each in about]
        for generation in here:
            if generation is not None:
                self._failed.add(generation, error)
        if isinstance(message, Open | OpenEdge) and not any(here):
            log.error("generation_failed", request_id=message.request_id, **described(error))
            outputs.add(refuse(message, GENERATION_FAILED, node_id=self._node_id))

    def _sample(self, outputs: OutputBatcher) -> None:
        """At the edge: hidden states that came back from the last span become tokens."""
        each_isolated(
            partial(self._finish, outputs=outputs),
            self.edge.sample(),
            lambda sampled, error: self._failed.add(sampled.generation, error),
        )

    def _finish(self, sampled: Sampled, outputs: OutputBatcher) -> None:
        outputs.add(*sampled.tokens)
        if sampled.ended is not None:
            outputs.add(sampled.ended)
            self.generations.close(sampled.generation)
        elif not sampled.finite:
            outputs.add(refuse_output(sampled.generation, "not_finite", node_id=self._node_id))

    def _schedule(self, outputs: OutputBatcher) -> list[WorkItem]:
        """The next batch: at the edge, next tokens join what waits; then the scheduler chooses."""
        running = self.generations.running()
        for item in self.edge.next_inputs(g for g in running if not self._scheduler.is_waiting(g)):
            self._scheduler.add(item)
        batch = []
        for item in self._scheduler.schedule(running):
            refused = check_position(item, node_id=self._node_id)
            if refused is None:
                batch.append(item)
            else:
                outputs.add(refused)
        batch.sort(key=lambda item: item.rows)  # segments of equally many rows attend together
        return batch

    def _emit(self, computed: ModelOutput, outputs: OutputBatcher) -> None:
        """Hidden states go to the next node; behind the last span, those to sample to the edge."""
        outputs.add(*computed.refused)
        each_isolated(
            partial(self._forward, outputs=outputs),
            computed.items,
            lambda computed, error: self._failed.add(computed[0].generation, error),
        )

    def _forward(self, computed: tuple[WorkItem, torch.Tensor], outputs: OutputBatcher) -> None:
        """Where the hidden states of an item go."""
        item, hidden = computed
        generation, position = item.generation, item.position
        if not generation.last:
            generation.replay_buffer.put(position, hidden)
            if generation.resume.replay or not item.replay:
                outputs.send(generation, position, hidden, item.rows_to_sample, replay=item.replay)
        elif item.rows_to_sample:
            position, last = item.end - item.rows_to_sample, hidden[-item.rows_to_sample :]
            if generation.first:
                self.edge.receive(generation, position, last)
            else:
                outputs.send(generation, position, last, item.rows_to_sample)
