"""A node that moves to another span: what it holds in memory, before, meanwhile and afterwards."""

import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from mesh.node_api import Span
from mesh.wire import GenerationRefused, OpenEdge, Prompt, StageAssignment
from node_runner.engine.engine import Engine
from node_runner.engine.model.span_model import SpanModel
from node_runner.node import rebalance
from node_runner.node.engine_loader import EngineLoader, LoadedSpan, PreparedSpan
from node_runner.node.engine_set import EngineSet
from node_runner.node.options import CannotServe
from node_runner.node.rebalance import Rebalancer
from tests.support.engine.pipeline import AFRESH, GREEDY
from tests.support.node.options import node_options

OLD: Span = (0, 4)
NEW: Span = (2, 6)
PATIENCE = 60.0


class WatchedLoader(EngineLoader):
    """Knows which spans are in memory. ``refuses``: whose KV budget it says is too small."""

    def __init__(self, cache: Path, max_sessions: int | None = None) -> None:
        options = node_options(cache, max_sessions=max_sessions)
        super().__init__(options, torch.device("cpu"), "http://nowhere")
        self.refuses: Span | None = None
        self.in_memory: weakref.WeakValueDictionary[Span, SpanModel] = weakref.WeakValueDictionary()
        self.beside: dict[Span, list[Span]] = {}
        """What was in memory when each was loaded."""

    def load(self, prepared: PreparedSpan) -> LoadedSpan:
        self.beside[prepared.spec.start, prepared.spec.end] = list(self.in_memory)
        loaded = super().load(prepared)
        self.in_memory[loaded.info.span] = loaded.model
        return loaded

    def make_engine(self, loaded: LoadedSpan, node_id: str) -> Engine:
        if loaded.info.span == self.refuses:
            raise CannotServe("There is no room for KV.")
        return super().make_engine(loaded, node_id)


@dataclass
class Moved:
    """A node that serves, without a platform."""

    loader: WatchedLoader
    engines: EngineSet
    rebalancer: Rebalancer
    lost: threading.Event
    ended: threading.Event = field(default_factory=threading.Event)

    def serve(self) -> None:
        while not self.ended.wait(0.01):
            self.engines.step([])

    def assign(self, layers: Span, *, should_rebalance: bool, until: Callable[[], bool]) -> None:
        """What heartbeats are answered, until it has come about."""
        deadline = time.monotonic() + PATIENCE
        while not until():
            assert time.monotonic() < deadline
            self.rebalancer.assign(layers, should_rebalance=should_rebalance)
            time.sleep(0.01)

    def move(self, old: Span, new: Span) -> None:
        """Load it beside the old span, as long as routes count on that one."""
        self.assign(new, should_rebalance=True, until=lambda: self.engines.loaded == [old, new])


def start(cache: Path, *, spans_in_memory: float) -> Moved:
    loader = WatchedLoader(cache)
    prepared = loader.prepare(OLD, edge=True)
    loaded = loader.load(prepared)
    engines = EngineSet("node", OLD, loader.make_engine(loaded, "node"))
    lost = threading.Event()
    rebalancer = Rebalancer(
        engines,
        loader,
        node_id="node",
        first=loaded.info,
        memory_bytes=round(spans_in_memory * prepared.memory_bytes),
        request_heartbeat=lambda: None,
        on_span_change=lambda: None,
        on_span_lost=lost.set,
    )
    return Moved(loader, engines, rebalancer, lost)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rebalance, "POLL_SECONDS", 0.01)


@pytest.fixture
def roomy(tmp_path: Path) -> Iterator[Moved]:
    yield from serving(start(tmp_path, spans_in_memory=2.5))


@pytest.fixture
def tight(tmp_path: Path) -> Iterator[Moved]:
    yield from serving(start(tmp_path, spans_in_memory=1.5))


def serving(node: Moved) -> Iterator[Moved]:
    thread = threading.Thread(target=node.serve)
    thread.start()
    yield node
    node.ended.set()
    thread.join()


def test_where_both_fit_the_old_span_is_gone_after_the_move(roomy: Moved) -> None:
    in_memory = roomy.loader.in_memory
    for old, new in ((OLD, NEW), (NEW, OLD)):
        roomy.move(old, new)
        assert roomy.loader.beside[new] == [old]
        roomy.assign(new, should_rebalance=False, until=lambda: len(in_memory) == 1)
        assert roomy.engines.loaded == list(in_memory) == [new]


def test_where_one_fits_the_old_span_is_gone_before_the_new_one_is_loaded(tight: Moved) -> None:
    engines = tight.engines
    tight.assign(NEW, should_rebalance=True, until=lambda: engines.loaded == [NEW])
    assert tight.loader.beside.pop(NEW) == tight.loader.beside.pop(OLD) == []
    tight.assign(OLD, should_rebalance=True, until=lambda: engines.loaded == [OLD])
    assert tight.loader.beside == {OLD: []}


def test_what_could_not_be_served_is_gone_before_the_old_span_comes_back(tight: Moved) -> None:
    engines, beside = tight.engines, tight.loader.beside
    tight.loader.refuses = NEW
    del beside[OLD]
    tight.assign(
        NEW, should_rebalance=True, until=lambda: OLD in beside and engines.loaded == [OLD]
    )
    assert beside == {NEW: [], OLD: []}
    assert tight.rebalancer.cannot_serve == NEW
    assert not tight.lost.is_set()


def test_the_edge_is_told_of_the_span_that_has_it(roomy: Moved) -> None:
    assert roomy.rebalancer.has_edge(OLD)
    roomy.move(OLD, NEW)
    assert (roomy.rebalancer.has_edge(OLD), roomy.rebalancer.has_edge(NEW)) == (True, False)


def test_a_node_takes_as_many_generations_as_it_was_told(tmp_path: Path) -> None:
    """`--max-sessions` reaches the engine."""
    loader = WatchedLoader(tmp_path, max_sessions=1)
    engine = loader.make_engine(loader.load(loader.prepare(OLD, edge=True)), "node")
    assignment = StageAssignment(0, 1, "node", "node", "node", 100, 60, *OLD)
    openings = [
        OpenEdge(name, 1, assignment, AFRESH, [], Prompt([1, 2], [], 8, GREEDY)) for name in "ab"
    ]
    results = engine.step(openings)
    assert [r.request_id for r in results if isinstance(r, GenerationRefused)] == ["b"]
    assert (list(engine.generations), engine.free_kv()) == (["a"], 0)
