"""Joining and rebalancing: at the bottleneck, only if it pays, and never to and fro."""

from dataclasses import replace
from math import log

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market.placement.solver import (
    Candidate,
    ModelShape,
    Policy,
    Span,
    join,
    place,
    propose,
    throughput,
)
from tests.support.clusters import GB, candidates, models, node, rebalanced

quick = settings(max_examples=60, deadline=None)
MODEL = ModelShape(8, 0.0)


def by_id(*nodes: Candidate) -> dict[str, Candidate]:
    return {n.node_id: n for n in nodes}


@st.composite
def clusters(draw: st.DrawFn) -> tuple[list[Candidate], dict[str, Span], ModelShape]:
    """Nodes that serve spans that they hold, wherever those are; some serve nothing."""
    nodes, model = draw(candidates(most=7)), draw(models)
    spans = {}
    for n in nodes:
        possible = [
            (start, end)
            for start in range(model.layers)
            for end in range(start + 1, model.layers + 1)
            if n.holds((start, end))
        ]
        span = draw(st.sampled_from([None, *possible]))
        if span:
            spans[n.node_id] = span
    return nodes, spans, model


class TestJoining:
    def test_the_slowest_stage_gets_a_replica(self) -> None:
        nodes = by_id(node("a", 40.0), node("b", 4.0))
        spans = {"a": (0, 4), "b": (4, 8)}
        assert join(node("c", 4.0), nodes, spans, MODEL) == (4, 8)

    def test_a_node_that_does_not_hold_that_stage_is_of_no_use(self) -> None:
        nodes = by_id(node("a", 40.0), node("b", 4.0))
        spans = {"a": (0, 4), "b": (4, 8)}
        assert join(node("c", 4.0, 3), nodes, spans, MODEL) is None

    def test_a_node_that_is_not_trusted_is_not_given_the_edge(self) -> None:
        nodes = by_id(node("a", 4.0), node("b", 40.0))
        spans = {"a": (0, 4), "b": (4, 8)}
        assert join(node("c", 4.0, edge=0), nodes, spans, MODEL) is None
        assert join(node("c", 4.0), nodes, spans, MODEL) == (0, 4)

    def test_layers_without_a_node_are_filled(self) -> None:
        nodes = by_id(node("a"), node("c"))
        spans = {"a": (0, 3), "gone": (3, 6), "c": (6, 8)}
        assert join(node("d", 1.0, 4), nodes, spans, MODEL) == (3, 6)

    def test_a_new_cluster_grows_from_both_ends(self) -> None:
        nodes, spans = {}, {}
        for new in (node("x", capacity=3, edge=0), node("a", capacity=4), node("y", capacity=9)):
            span = join(new, nodes, spans, MODEL)
            nodes[new.node_id] = new
            if span:
                spans[new.node_id] = span
        assert spans == {"x": (5, 8), "a": (0, 3), "y": (3, 5)}

    @quick
    @given(clusters(), candidates(most=1))
    def test_no_other_span_would_help_more(
        self, cluster: tuple[list[Candidate], dict[str, Span], ModelShape], joining: list[Candidate]
    ) -> None:
        nodes, spans, model = cluster
        [new] = [replace(n, node_id="new") for n in joining]
        known = by_id(*nodes, new)
        span = join(new, by_id(*nodes), spans, model)
        assert span is None or new.holds(span)
        before = throughput(known, spans, model)
        after = throughput(known, spans | ({"new": span} if span else {}), model)
        most = max(
            throughput(known, spans | {"new": (start, end)}, model)
            for start in range(model.layers)
            for end in range(start + 1, model.layers + 1)
        )
        assert after >= before
        assert after == pytest.approx(max(before, most))


class TestRebalancing:
    def test_what_is_balanced_stays(self) -> None:
        nodes = [node("a", 4.0), node("b", 4.0)]
        assert propose(nodes, {"a": (0, 4), "b": (4, 8)}, MODEL) is None

    def test_a_node_that_has_become_slow_gives_layers_to_its_neighbour(self) -> None:
        nodes = [node("a", 12.0), node("b", 4.0)]
        plan = propose(nodes, {"a": (0, 4), "b": (4, 8)}, MODEL)
        assert plan is not None
        assert [(c.node_id, c.new, c.load_bytes) for c in plan.changes] == [
            ("a", (0, 6), 2 * GB),
            ("b", (6, 8), 0),
        ]
        assert (plan.before, plan.meanwhile, plan.after, plan.load_seconds) == (1, 1, 2, 2)

    def test_a_small_gain_is_not_worth_a_rebalance(self) -> None:
        nodes = [node("a", 12.0), node("b", 4.0)]
        spans: dict[str, Span] = {"a": (0, 4), "b": (4, 8)}
        assert propose(nodes, spans, MODEL, Policy(threshold=0.99)) is not None
        assert propose(nodes, spans, MODEL, Policy(threshold=1.0)) is None

    def test_loading_has_to_pay_within_the_horizon(self) -> None:
        """Two layers take 20 s, and half of the throughput's gain in steps is lost for it."""
        nodes = [node("a", 12.0, load=GB / 10), node("b", 4.0)]
        spans: dict[str, Span] = {"a": (0, 4), "b": (4, 8)}
        policy = Policy(threshold=0.0)
        assert propose(nodes, spans, MODEL, replace(policy, horizon=21)) is not None
        assert propose(nodes, spans, MODEL, replace(policy, horizon=19)) is None

    def test_a_node_that_cannot_hold_both_spans_serves_nothing_meanwhile(self) -> None:
        nodes = [
            node("a", 40.0, 4, edge=4),
            node("b", 4.0, 4),
            node("u", 5.0, 5),
            node("v", 30.0, 4, load=GB / 10),
        ]
        spans: dict[str, Span] = {"a": (0, 4), "b": (4, 8), "v": (0, 3), "u": (3, 8)}
        plan = propose(nodes, spans, MODEL)
        assert plan is not None
        assert [(c.node_id, c.new) for c in plan.changes] == [("v", (4, 8))]
        assert (plan.before, plan.meanwhile, plan.after, plan.load_seconds) == (2, 1, 8.5, 40)

    def test_neighbours_take_over_the_layers_of_a_node_that_has_left(self) -> None:
        nodes = [node("a", 6.0, 5, edge=5), node("c", 6.0, 5)]
        spans: dict[str, Span] = {"a": (0, 3), "gone": (3, 5), "c": (5, 8)}
        plan = propose(nodes, spans, MODEL)
        assert plan is not None
        assert rebalanced(spans, plan) == {"a": (0, 4), "c": (4, 8), "gone": (3, 5)}

    def test_an_idle_node_takes_over_from_one_that_has_left(self) -> None:
        nodes = [node(name, 8.0, 4, edge=4) for name in ("a", "b", "c", "idle")]
        spans: dict[str, Span] = {"a": (0, 4), "b": (4, 8), "c": (0, 4), "gone": (4, 8)}
        plan = propose(nodes, spans, MODEL)
        assert plan is not None
        assert [(c.node_id, c.old, c.new) for c in plan.changes] == [("idle", None, (4, 8))]

    def test_idle_nodes_that_cover_the_model_make_a_pipeline(self) -> None:
        nodes = [node("a", 8.0), *(node(f"idle {n}", 8.0, 4, edge=4) for n in range(2))]
        plan = propose(nodes, {"a": (0, 7), "idle 0": (7, 8)}, MODEL)
        assert plan is not None
        assert plan.after > plan.before

    @quick
    @given(clusters())
    def test_a_cluster_that_serves_nothing_serves_again_if_memory_allows(
        self, cluster: tuple[list[Candidate], dict[str, Span], ModelShape]
    ) -> None:
        nodes, spans, model = cluster
        best = place(nodes, model).throughput
        if best and not throughput(by_id(*nodes), spans, model):
            plan = propose(nodes, spans, model)
            assert plan is not None
            assert plan.after >= 0.99 * best

    @quick
    @given(clusters(), st.sampled_from([0.02, 0.1, 0.3]), st.sampled_from([10.0, 600.0]))
    def test_rebalances_come_to_an_end_and_none_is_undone(
        self,
        cluster: tuple[list[Candidate], dict[str, Span], ModelShape],
        threshold: float,
        horizon: float,
    ) -> None:
        nodes, spans, model = cluster
        known, policy = by_id(*nodes), Policy(threshold, horizon)
        most = sum(n.speed for n in nodes) / model.layers
        earlier, rates = [spans], [throughput(known, spans, model)]
        while (plan := propose(nodes, spans, model, policy)) is not None:
            assert plan == propose(nodes[::-1], spans, model, policy)
            assert plan.before == rates[-1]
            spans = rebalanced(spans, plan)
            rates.append(throughput(known, spans, model))
            assert rates[-1] == pytest.approx(plan.after)
            assert rates[-1] > rates[-2] * (1 + threshold)
            assert plan.steps_within(horizon) > rates[-2] * horizon
            assert all(known[name].holds(span) for name, span in spans.items())
            assert spans not in earlier
            earlier.append(spans)
            least = min(rate for rate in rates if rate > 0)
            assert len(rates) - 1 <= 1 + log(most / least) / log(1 + threshold) + 1
