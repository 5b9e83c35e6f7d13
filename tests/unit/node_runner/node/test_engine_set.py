"""A node that moves: what runs stays where it is, and what is new goes where its route says."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from mesh.node_api import Span
from mesh.wire import (
    Close,
    Ended,
    GenerationRefused,
    Message,
    OpenEdge,
    Ping,
    Pong,
    Prompt,
    StageAssignment,
    Token,
)
from node_runner.engine.engine import Engine
from node_runner.node import engine_set as module
from node_runner.node.engine_set import EngineSet
from node_runner.outputs import EngineOutput, NodeMessage
from tests.conftest import DEMO_MODEL
from tests.support.engine.pipeline import AFRESH, GREEDY, load_span

WHOLE: Span = (0, 6)
OTHER: Span = (0, 5)
"""In its place, the demo model's layers again: only its name tells it from the other."""


@pytest.fixture
def engines(tmp_path: Path) -> EngineSet:
    return EngineSet("node", WHOLE, engine(tmp_path))


def engine(folder: Path, max_generations: int | None = None) -> Engine:
    span = load_span(DEMO_MODEL, (0, 6), folder)
    return Engine(span, node_id="node", kv_budget_bytes=10**7, max_generations=max_generations)


def open_edge(request_id: str, layers: Span, *, epoch: int = 1, tokens: int = 8) -> OpenEdge:
    assignment = StageAssignment(0, 1, "node", "node", "node", 100, 60, *layers)
    prompt = Prompt([1, 2, 3], [], tokens, GREEDY)
    return OpenEdge(request_id, epoch, assignment, AFRESH, [], prompt)


def run(engines: EngineSet, *messages: Message, steps: int = 100) -> list[EngineOutput]:
    """Results until there is nothing more to do."""
    results = engines.step(messages)
    for _ in range(steps):
        if not engines.busy:
            break
        results += engines.step([])
    return results


def tokens(results: Sequence[EngineOutput], request_id: str) -> list[int]:
    found = (result for result in results if isinstance(result, Token))
    return [token.token_id for token in found if token.request_id == request_id]


def test_a_generation_does_not_notice_the_move(engines: EngineSet, tmp_path: Path) -> None:
    expected = tokens(run(engines, open_edge("alone", WHOLE)), "alone")
    assert len(expected) == 8
    begun = run(engines, open_edge("running", WHOLE), steps=2)
    engines.add(OTHER, engine(tmp_path))
    engines.set_routed_span(OTHER)
    results = begun + run(engines, open_edge("new", OTHER))
    assert tokens(results, "running") == tokens(results, "new") == expected
    assert {r.request_id for r in results if isinstance(r, Ended)} == {"running", "new"}
    run(engines)
    assert engines.loaded == [OTHER]


def test_until_routes_use_the_new_span_both_are_served(engines: EngineSet, tmp_path: Path) -> None:
    engines.add(OTHER, engine(tmp_path))
    results = run(engines, open_edge("old", WHOLE), open_edge("new", OTHER))
    assert len(tokens(results, "old")) == len(tokens(results, "new")) == 8
    assert engines.spans == engines.loaded == [WHOLE, OTHER]
    assert engines.serves_routed_span


def test_a_span_that_is_not_served_is_refused(engines: EngineSet) -> None:
    results = engines.step([open_edge("lost", OTHER)])
    assert results == [GenerationRefused("lost", 1, "node", "moved")]


def test_messages_follow_an_opening_of_the_same_exchange(
    engines: EngineSet, tmp_path: Path
) -> None:
    engines.add(OTHER, engine(tmp_path))
    results = engines.step([open_edge("short", WHOLE), Close("short", 1)])
    assert engines.generations == 0
    assert not any(isinstance(result, NodeMessage | GenerationRefused) for result in results)


def test_a_span_that_drains_takes_nothing_new_and_ends_what_runs(
    engines: EngineSet, tmp_path: Path
) -> None:
    run(engines, open_edge("running", WHOLE), steps=1)
    engines.drain_span(WHOLE)
    results = run(engines, open_edge("late", WHOLE))
    assert GenerationRefused("late", 1, "node", "moved") in results
    assert any(isinstance(r, Ended) and r.request_id == "running" for r in results)
    run(engines)
    assert engines.loaded == []
    assert not engines.serves_routed_span
    assert engines.free_kv() == 0


def test_who_does_not_end_in_time_is_told(
    engines: EngineSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SPAN_DRAIN_TIMEOUT", 0.0)
    run(engines, open_edge("long", WHOLE, tokens=90), steps=1)
    engines.drain_span(WHOLE)
    assert GenerationRefused("long", 1, "node", "moved") in run(engines)
    assert engines.loaded == []


def test_both_spans_together_take_no_more_generations_than_the_node_may(tmp_path: Path) -> None:
    engines = EngineSet("node", WHOLE, engine(tmp_path, max_generations=2))
    engines.add(OTHER, engine(tmp_path, max_generations=2))
    engines.set_routed_span(OTHER)
    engines.step([open_edge("first", WHOLE), open_edge("second", OTHER)])
    results = engines.step([open_edge("third", OTHER), open_edge("fourth", WHOLE)])
    refused = {r.request_id: r.code for r in results if isinstance(r, GenerationRefused)}
    assert refused == {"third": "kv_full", "fourth": "kv_full"}
    assert (engines.generations, engines.free_kv()) == (2, 0)
    run(engines)
    run(engines)
    assert engines.loaded == [OTHER]
    assert engines.free_kv() > 0
    results = run(engines, open_edge("fifth", OTHER), open_edge("sixth", OTHER))
    assert [len(tokens(results, request_id)) for request_id in ("fifth", "sixth")] == [8, 8]


def test_a_question_is_answered_once(engines: EngineSet, tmp_path: Path) -> None:
    engines.add(OTHER, engine(tmp_path))
    run(engines, open_edge("running", WHOLE), steps=1)
    for request_id in ("running", "unknown"):
        pongs = [r for r in engines.step([Ping(request_id, 1)]) if isinstance(r, Pong)]
        assert [pong.request_id for pong in pongs] == [request_id]
