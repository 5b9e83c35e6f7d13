"""What each message does to a generation, the scheduler's queues or the edge."""

import torch

from mesh.errors import WireError
from mesh.wire import (
    Close,
    Message,
    Open,
    OpenEdge,
    Ping,
    Pong,
    PrefixCached,
    Step,
    Steps,
    StopEpoch,
)
from mesh.wire.limits import MAX_STEP_ROWS
from node_runner.engine.admission import Admission, prefix_reused
from node_runner.engine.device.isolation import each_isolated
from node_runner.engine.device.tensors import is_finite
from node_runner.engine.edge import Edge
from node_runner.engine.generation import FailGeneration, Generation, WorkItem
from node_runner.engine.generation_table import GenerationTable
from node_runner.engine.model.span_model import SpanModel
from node_runner.engine.output_batcher import OutputBatcher
from node_runner.engine.refusals import refuse_sender
from node_runner.engine.scheduler import Scheduler
from node_runner.engine.tensor_codec import from_steps


class Receiver:
    """Takes messages in, one after the other. Messages of generations or epochs that are not here
    are ignored. ``fail`` ends a generation."""

    def __init__(
        self,
        span: SpanModel,
        generations: GenerationTable,
        scheduler: Scheduler,
        edge: Edge,
        admission: Admission,
        node_id: str,
        fail: FailGeneration,
    ) -> None:
        self._span = span
        self._generations = generations
        self._scheduler = scheduler
        self._edge = edge
        self._admission = admission
        self._node_id = node_id
        self._fail = fail

    def receive(self, message: Message, outputs: OutputBatcher) -> None:
        """Do what a message asks for; answers and refusals go to ``outputs``."""
        match message:
            case Steps():
                self._take_steps(message, outputs)
            case Open() | OpenEdge():
                self._admission.open(message, outputs)
            case Ping():
                outputs.add(self._pong(message))
            case Close() | StopEpoch() | PrefixCached():
                generation = self._generations.get(message.request_id)
                if generation is not None:
                    self._apply(message, generation, outputs)

    def _pong(self, message: Ping) -> Pong:
        generation = self._generations.get(message.request_id)
        computed = 0 if generation is None else generation.cache.length
        return Pong(message.request_id, message.epoch, self._node_id, computed)

    def _apply(
        self,
        message: Close | StopEpoch | PrefixCached,
        generation: Generation,
        outputs: OutputBatcher,
    ) -> None:
        match message:
            case Close() if generation.epoch <= message.epoch:
                self._generations.close(generation)
            case StopEpoch() if generation.epoch == message.epoch:
                generation.halted = True
            case PrefixCached() if (
                generation.epoch == message.epoch and generation.decoding is not None
            ):
                if generation.decoding.mark_ready(message.stage, message.positions):
                    outputs.add(*prefix_reused(generation))

    def _take_steps(self, message: Steps, outputs: OutputBatcher) -> None:
        """Hidden states from the previous node: into the scheduler's queues, or at the edge to the
        sampler."""
        span = self._span
        generations = [self._generations.at_epoch(s.request_id, s.epoch) for s in message.steps]
        if not any(generations):
            return
        try:
            hidden = from_steps(
                message, width=span.hidden_size, dtype=span.dtype, device=span.device
            )
        except WireError as error:
            concerned = dict.fromkeys(each for each in generations if each is not None)
            outputs.add(*(refuse_sender(each, error.code) for each in concerned))
            return
        rows = hidden.split_with_sizes([step.rows for step in message.steps])
        here = [each for each in zip(message.steps, generations, rows, strict=True) if each[1]]
        each_isolated(
            lambda each: self._take_step(*each, outputs),
            here,
            lambda each, error: self._fail(each[1], error),
        )

    def _take_step(
        self, step: Step, generation: Generation, hidden: torch.Tensor, outputs: OutputBatcher
    ) -> None:
        if generation.halted:  # for an earlier step of the message
            return
        capacity = generation.stage_assignment.capacity
        waiting = self._scheduler.waiting_rows(generation)
        if step.rows > MAX_STEP_ROWS or waiting > 2 * capacity:
            outputs.add(refuse_sender(generation, "flood"))
        elif generation.decoding is None:
            if step.position + step.rows > capacity:
                outputs.add(refuse_sender(generation, "capacity"))
                return
            # Only the supervisor says up to where there are replays: they are not passed on.
            replay = step.replay and step.position + step.rows <= generation.resume.known
            if replay and generation.resume.keep:
                return  # they are here, and this node itself sends them to who needs them
            step = step._replace(replay=replay, wanted=0 if replay else step.wanted)
            # What this node sends on counts as what it was sent: the relay would refuse more.
            if not generation.received.add(step, capacity, capacity):
                outputs.add(refuse_sender(generation, "flood"))
                return
            item = WorkItem(generation, step.position, step.wanted, replay, hidden)
            self._scheduler.add(item)
        elif is_finite(hidden):
            self._edge.receive(generation, step.position, hidden)
        else:
            outputs.add(refuse_sender(generation, "not_finite"))
