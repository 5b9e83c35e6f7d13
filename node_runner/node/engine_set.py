"""A node's engines: one for the span that it serves, and one more while it moves to another.

A generation stays with the engine in which it was opened, so nothing that runs notices a move. A
new one names the span that its route counts on, and goes to the engine that serves it.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

from mesh.wire import Message, Open, OpenEdge, Refused, Steps
from node_runner.engine.engine import Engine
from node_runner.outputs import EngineOutput

Span = tuple[int, int]
"""A span: start and end (not included)."""

LEAVE_LIMIT = 300.0
"""Seconds that generations get to end in an engine that leaves. Then their supervisors are told,
and go on elsewhere."""

MOVED = "moved"
"""Code of a refusal: the span that the route counts on is not served here (any more)."""


@dataclass(slots=True)
class _Leaving:
    """An engine that is to go: at ``until`` (monotonic seconds), or when it is empty.
    ``refuses``: takes no new generation."""

    until: float
    refuses: bool


@dataclass(frozen=True, slots=True)
class _Add:
    layers: Span
    engine: Engine


@dataclass(frozen=True, slots=True)
class _CountOn:
    layers: Span


@dataclass(frozen=True, slots=True)
class _GiveUp:
    layers: Span


@dataclass(slots=True)
class _Inbox:
    """What one engine is to take in, and the generations that it has, or will have then."""

    generations: set[str]
    messages: list[Message] = field(default_factory=list)

    def open(self, message: Open | OpenEdge) -> None:
        self.generations.add(message.request_id)
        self.messages.append(message)


def _addressed(message: Message, inboxes: list[_Inbox]) -> list[_Inbox]:
    """Where a message's generations are. What is of none that is here, such as a question whether
    this node lives, is for whoever may answer."""
    if isinstance(message, Steps):
        ids = {step.request_id for step in message.steps}
        return [inbox for inbox in inboxes if ids & inbox.generations]
    holding = [inbox for inbox in inboxes if message.request_id in inbox.generations]
    return holding or inboxes[-1:]


class EngineSet:
    """What a runner steps. One thread calls `step`; what any thread may call says so.

    Args:
        node_id: This node.
        layers: The span that it serves, and that routes count on.
        engine: Its engine.
    """

    def __init__(self, node_id: str, layers: Span, engine: Engine) -> None:
        self._node_id = node_id
        self._engines: dict[Span, Engine] = {layers: engine}
        self._counted_on = layers
        self._leaving: dict[Span, _Leaving] = {}
        self._asked: SimpleQueue[_Add | _CountOn | _GiveUp] = SimpleQueue()

    def add(self, layers: Span, engine: Engine) -> None:
        """Serve a span more. From any thread."""
        self._asked.put(_Add(layers, engine))

    def count_on(self, layers: Span) -> None:
        """Routes count on this span from now on: once it is served, all others leave when they are
        empty. From any thread."""
        if layers != self._counted_on or len(self._engines) > 1:
            self._asked.put(_CountOn(layers))

    def give_up(self, layers: Span) -> None:
        """Take nothing new for a span, and drop it when it is empty. From any thread."""
        self._asked.put(_GiveUp(layers))

    @property
    def spans(self) -> list[Span]:
        """What new generations may ask for. From any thread."""
        served = dict(self._engines)
        leaving = dict(self._leaving)
        return [at for at in served if at not in leaving or not leaving[at].refuses]

    @property
    def loaded(self) -> list[Span]:
        """All that takes memory. From any thread."""
        return list(dict(self._engines))

    @property
    def serves_routes(self) -> bool:
        """Whether the span that routes count on is served. From any thread."""
        return self._counted_on in self.spans

    @property
    def generations(self) -> int:
        """How many hold KV room now. From any thread."""
        return sum(len(engine.generations) for engine in dict(self._engines).values())

    def room(self) -> int:
        """Positions that there is KV room for, where routes count on it. From any thread."""
        engine = self._engines.get(self._counted_on)
        return engine.room() if engine is not None and self.serves_routes else 0

    def capacity(self) -> int:
        """The same while no generation is here. From any thread."""
        engine = self._engines.get(self._counted_on)
        return 0 if engine is None else engine.capacity()

    @property
    def kv_budget_bytes(self) -> int:
        """Of all engines. From any thread."""
        return sum(engine.pool.budget_bytes for engine in dict(self._engines).values())

    @property
    def kv_used_bytes(self) -> int:
        """That generations hold, in all engines. From any thread."""
        return sum(
            engine.pool.used_bytes - engine.prefixes.kept_bytes
            for engine in dict(self._engines).values()
        )

    @property
    def busy(self) -> bool:
        """Whether another step has something to do without new messages."""
        return any(engine.busy for engine in self._engines.values())

    def step(self, messages: Iterable[Message]) -> list[EngineOutput]:
        """Take messages in, run one forward of each engine, give results out."""
        self._do_what_was_asked()
        inboxes = {layers: _Inbox(set(engine.generations)) for layers, engine in self._all()}
        results: list[EngineOutput] = []
        for message in messages:
            if isinstance(message, Open | OpenEdge):
                layers = (message.route_position.start_layer, message.route_position.end_layer)
                if layers in self.spans:
                    inboxes[layers].open(message)
                else:
                    refused = Refused(message.request_id, message.epoch, self._node_id, MOVED)
                    results.append(refused)
                continue
            for inbox in _addressed(message, list(inboxes.values())):
                inbox.messages.append(message)
        for layers, engine in self._all():
            engine.elsewhere = self.generations - len(engine.generations)
            results += engine.step(inboxes[layers].messages)
        for layers, leaving in list(self._leaving.items()):
            engine = self._engines[layers]
            if not engine.generations or time.monotonic() > leaving.until:
                results += engine.abandon(MOVED)
                del self._engines[layers], self._leaving[layers]
        return results

    def expire(self) -> None:
        """Forget generations whose supervisor never came back to close them."""
        for engine in self._engines.values():
            engine.expire()

    def take_forwards(self) -> list[tuple[int, int]]:
        """Generations and positions of each forward since the last call."""
        return [taken for engine in self._engines.values() for taken in engine.take_forwards()]

    def take_drafts(self) -> tuple[int, int]:
        """Tokens guessed since the last call, and how many of them were right."""
        taken = [engine.edge.take_drafts() for engine in self._engines.values()]
        return sum(guessed for guessed, _ in taken), sum(right for _, right in taken)

    def _all(self) -> list[tuple[Span, Engine]]:
        return list(self._engines.items())

    def _do_what_was_asked(self) -> None:
        while True:
            try:
                asked = self._asked.get_nowait()
            except Empty:
                return
            match asked:
                case _Add(layers, engine):
                    self._engines[layers] = engine
                case _CountOn(layers):
                    self._counted_on = layers
                    if layers in self._engines:
                        self._leave(self._engines.keys() - {layers}, refuses=False)
                        self._leaving.pop(layers, None)
                case _GiveUp(layers) if layers in self._engines:
                    self._leave([layers], refuses=True)

    def _leave(self, spans: Iterable[Span], *, refuses: bool) -> None:
        for layers in spans:
            known = self._leaving.get(layers)
            until = time.monotonic() + LEAVE_LIMIT if known is None else known.until
            self._leaving[layers] = _Leaving(until, refuses)
