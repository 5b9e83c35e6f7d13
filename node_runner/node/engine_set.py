"""A node's engines: one for the span that it serves, and one more while it moves to another.

A generation stays with the engine in which it was opened, so nothing that runs notices a move. A
new one names the span of its route, and goes to the engine that serves that span.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

from mesh.node_api import Span
from mesh.wire import GenerationRefused, Message, Open, OpenEdge, Steps
from node_runner.engine.engine import Engine
from node_runner.outputs import EngineOutput

SPAN_DRAIN_TIMEOUT = 300.0
"""Seconds that generations get to end in an engine that drains. Then their supervisors are told,
and go on elsewhere."""

MOVED = "moved"
"""Code of a refusal: the route's span is not served here (any more)."""


@dataclass(slots=True)
class _Draining:
    """An engine that ends at ``deadline`` (monotonic seconds), or as soon as it is empty.
    ``refuses_new``: takes no new generation."""

    deadline: float
    refuses_new: bool


@dataclass(frozen=True, slots=True)
class _AddEngine:
    span: Span
    engine: Engine


@dataclass(frozen=True, slots=True)
class _SetRoutedSpan:
    span: Span


@dataclass(frozen=True, slots=True)
class _DrainSpan:
    span: Span


@dataclass(slots=True)
class _Inbox:
    """What one engine is to take in, and the generations that it has, or will have then."""

    generations: set[str]
    messages: list[Message] = field(default_factory=list)

    def open(self, message: Open | OpenEdge) -> None:
        self.generations.add(message.request_id)
        self.messages.append(message)


def _addressed(message: Message, inboxes: list[_Inbox]) -> list[_Inbox]:
    """The inboxes of a message's generations. A message for none that is here, such as a ping, goes
    to any engine that may answer it."""
    if isinstance(message, Steps):
        ids = {step.request_id for step in message.steps}
        return [inbox for inbox in inboxes if ids & inbox.generations]
    holding = [inbox for inbox in inboxes if message.request_id in inbox.generations]
    return holding or inboxes[-1:]


class EngineSet:
    """A node's engines as one, which the serving loop steps.

    One thread calls `step`, `expire` and both `pop_` methods; all else may be called from any
    thread.

    Args:
        node_id: This node.
        span: The span that it serves, and that routes use.
        engine: The engine of that span.
    """

    def __init__(self, node_id: str, span: Span, engine: Engine) -> None:
        self._node_id = node_id
        self._engines: dict[Span, Engine] = {span: engine}
        self._routed_span = span
        self._draining: dict[Span, _Draining] = {}
        self._commands: SimpleQueue[_AddEngine | _SetRoutedSpan | _DrainSpan] = SimpleQueue()

    def add(self, span: Span, engine: Engine) -> None:
        """Serve one more span."""
        self._commands.put(_AddEngine(span, engine))

    def set_routed_span(self, span: Span) -> None:
        """Routes use this span from now on: once it is served, all others drain, and still take the
        generations of older routes."""
        if span != self._routed_span or len(self._engines) > 1:
            self._commands.put(_SetRoutedSpan(span))

    def drain_span(self, span: Span) -> None:
        """Take no new generation for a span, and drop its engine when that is empty."""
        self._commands.put(_DrainSpan(span))

    @property
    def spans(self) -> list[Span]:
        """Spans that new generations may name."""
        served = dict(self._engines)
        draining = dict(self._draining)
        return [span for span in served if span not in draining or not draining[span].refuses_new]

    @property
    def loaded(self) -> list[Span]:
        """All spans in memory."""
        return list(dict(self._engines))

    @property
    def serves_routed_span(self) -> bool:
        return self._routed_span in self.spans

    @property
    def generations(self) -> int:
        """How many generations hold KV now."""
        return sum(len(engine.generations) for engine in dict(self._engines).values())

    def free_kv(self) -> int:
        """Positions that are free in the KV cache of the routed span; 0 if that is not served."""
        engine = self._engines.get(self._routed_span)
        return engine.free_kv() if engine is not None and self.serves_routed_span else 0

    def kv_capacity(self) -> int:
        """Positions of the KV cache of the routed span; 0 if that is not loaded."""
        engine = self._engines.get(self._routed_span)
        return 0 if engine is None else engine.kv_capacity()

    @property
    def batch_invariant(self) -> bool:
        """Whether a generation's tokens are the same whoever runs beside: of all engines."""
        engines = list(dict(self._engines).values())
        return bool(engines) and all(engine.batch_invariant for engine in engines)

    @property
    def kv_budget_bytes(self) -> int:
        """Bytes of KV cache of all engines."""
        return sum(engine.pool.budget_bytes for engine in dict(self._engines).values())

    @property
    def kv_used_bytes(self) -> int:
        """Bytes of KV cache that generations hold, over all engines."""
        return sum(
            engine.pool.used_bytes - engine.prefix_cache.evictable_bytes
            for engine in dict(self._engines).values()
        )

    @property
    def busy(self) -> bool:
        """Whether another step has something to do without new messages."""
        return any(engine.busy for engine in dict(self._engines).values())

    def step(self, messages: Iterable[Message]) -> list[EngineOutput]:
        """Take messages in, run one forward of each engine, give outputs out."""
        self._run_commands()
        inboxes = {span: _Inbox(set(engine.generations)) for span, engine in self._engines.items()}
        outputs: list[EngineOutput] = []
        for message in messages:
            if isinstance(message, Open | OpenEdge):
                span = (message.stage_assignment.start_layer, message.stage_assignment.end_layer)
                if span in self.spans:
                    inboxes[span].open(message)
                else:
                    refused = GenerationRefused(
                        message.request_id, message.epoch, self._node_id, MOVED
                    )
                    outputs.append(refused)
                continue
            for inbox in _addressed(message, list(inboxes.values())):
                inbox.messages.append(message)
        for span, engine in self._engines.items():
            engine.generations.held_by_other_engines = self.generations - len(engine.generations)
            outputs += engine.step(inboxes[span].messages)
        for span, draining in list(self._draining.items()):
            engine = self._engines[span]
            if not engine.generations or time.monotonic() > draining.deadline:
                outputs += engine.abort_all(MOVED)
                del self._engines[span], self._draining[span]
        return outputs

    def expire(self) -> None:
        """Forget generations whose supervisor never came back to close them."""
        for engine in self._engines.values():
            engine.expire()

    def pop_forwards(self) -> list[tuple[int, int]]:
        """Generations and positions of each forward since the last call."""
        return [each for engine in self._engines.values() for each in engine.pop_forwards()]

    def pop_draft_counts(self) -> tuple[int, int]:
        """Draft tokens since the last call, and how many of them were accepted."""
        counts = [engine.edge.pop_draft_counts() for engine in self._engines.values()]
        return sum(drafted for drafted, _ in counts), sum(accepted for _, accepted in counts)

    def _run_commands(self) -> None:
        while True:
            try:
                command = self._commands.get_nowait()
            except Empty:
                return
            match command:
                case _AddEngine(span, engine):
                    self._engines[span] = engine
                case _SetRoutedSpan(span):
                    self._routed_span = span
                    if span in self._engines:
                        self._drain(self._engines.keys() - {span}, refuses_new=False)
                        self._draining.pop(span, None)
                case _DrainSpan(span) if span in self._engines:
                    self._drain([span], refuses_new=True)

    def _drain(self, spans: Iterable[Span], *, refuses_new: bool) -> None:
        for span in spans:
            known = self._draining.get(span)
            deadline = time.monotonic() + SPAN_DRAIN_TIMEOUT if known is None else known.deadline
            self._draining[span] = _Draining(deadline, refuses_new)
