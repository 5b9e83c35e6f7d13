"""Placement: full cover, no node over its memory, the slowest stage as quick as can be."""

import random
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market.placement.solver import (
    Candidate,
    ModelShape,
    Placement,
    candidate,
    even_split,
    measured_speed,
    place,
    throughput,
)
from market.placement.solver.water_filling import water_fill
from mesh.model.memory_footprint import Footprint
from tests.support.market.clusters import best_slowest, best_throughput, candidates, models, node

quick = settings(max_examples=50, deadline=None)
NEAR_ENOUGH = 0.95


@given(layers=st.integers(1, 200), nodes=st.integers(1, 200))
def test_even_spans_cover_all_layers_once(layers: int, nodes: int) -> None:
    if nodes > layers:
        with pytest.raises(ValueError, match="layers"):
            even_split(layers, nodes)
        return
    spans = even_split(layers, nodes)
    assert [start for start, _ in spans] == [0, *(end for _, end in spans[:-1])]
    assert spans[-1][1] == layers
    sizes = [end - start for start, end in spans]
    assert max(sizes) - min(sizes) <= 1


class TestCapacity:
    TAKES = Footprint(layer=100, edge=250, kv=2)

    def test_a_layer_takes_its_weights_and_its_kv(self) -> None:
        found = self._candidate(memory_bytes=1000)
        assert (found.capacity, found.edge_capacity) == (6, 5)  # 1000 // 150, 750 // 150

    def test_a_node_that_is_not_trusted_has_no_capacity_for_the_edge(self) -> None:
        assert self._candidate(memory_bytes=1000, trusted=False).edge_capacity == 0

    def test_a_small_device_holds_nothing(self) -> None:
        found = self._candidate(memory_bytes=149)
        assert (found.capacity, found.edge_capacity) == (0, 0)

    def test_speed_is_positive(self) -> None:
        with pytest.raises(ValueError, match="positive"):
            self._candidate(memory_bytes=1000, speed=0.0)
        with pytest.raises(ValueError, match="time"):
            measured_speed(4, 0.0)

    def test_speed_is_layers_over_the_measured_step(self) -> None:
        assert measured_speed(8, 4.0) == 2000
        assert measured_speed(8, 4.0, edge_work=1.0) == 2250

    def _candidate(
        self, *, memory_bytes: int, trusted: bool = True, speed: float = 1.0
    ) -> Candidate:
        return candidate(
            "a",
            self.TAKES,
            memory_bytes=memory_bytes,
            positions=25,
            speed=speed,
            load_speed=1.0,
            trusted=trusted,
        )


class TestOnePipeline:
    def test_layers_go_by_speed(self) -> None:
        filling = water_fill([node("a", 3.0), node("b", 1.0)], 8, None)
        assert filling is not None
        assert (filling.layers, filling.rate) == ((6, 2), 0.5)

    def test_a_full_node_leaves_the_rest_to_the_others(self) -> None:
        filling = water_fill([node("a", 9.0, 2), node("b"), node("c")], 8, None)
        assert filling is not None
        assert filling.layers == (2, 3, 3)

    def test_the_edge_is_work_too(self) -> None:
        filling = water_fill([node("a"), node("b", edge=0)], 8, 2.0)
        assert filling is not None
        assert (filling.layers, filling.edge_holder) == ((3, 5), 0)

    def test_a_node_that_would_slow_all_others_down_serves_nothing(self) -> None:
        filling = water_fill([node("a", 100.0), node("b", 1.0)], 8, None)
        assert filling is not None
        assert filling.layers == (8, 0)

    def test_the_only_trusted_node_serves_a_layer_however_slow(self) -> None:
        filling = water_fill([node("a", 1.0), node("b", 100.0, edge=0)], 8, 1.0)
        assert filling is not None
        assert filling.layers == (1, 7)

    @quick
    @given(candidates(most=4), models)
    def test_the_slowest_stage_is_the_best_of_all(
        self, nodes: list[Candidate], model: ModelShape
    ) -> None:
        filling = water_fill(nodes, model.layers, model.edge_work)
        assert (filling.rate if filling else 0.0) == pytest.approx(best_slowest(nodes, model))

    @quick
    @given(st.integers(0, 10**6), st.integers(20, 40))
    def test_long_pipelines_are_as_good_as_assigning_layer_by_layer(
        self, seed: int, count: int
    ) -> None:
        rng = random.Random(seed)
        nodes = [node(f"n{n}", 10 ** rng.uniform(0, 3), rng.randint(1, 9)) for n in range(count)]
        layers = rng.randint(1, sum(n.capacity for n in nodes))
        filling = water_fill(nodes, layers, None)
        assigned = [0] * count
        for _ in range(layers):
            place = min(
                (p for p in range(count) if assigned[p] < nodes[p].capacity),
                key=lambda p: (assigned[p] + 1) / nodes[p].speed,
            )
            assigned[place] += 1
        slowest = max(layers / n.speed for layers, n in zip(assigned, nodes, strict=True))
        assert filling is not None
        assert sum(filling.layers) == layers
        assert 1 / filling.rate == pytest.approx(slowest)


class TestPlacement:
    def test_one_node_does_it_alone(self) -> None:
        found = place([node("a", 18.0, 9)], ModelShape(8, 1.0))
        assert (found.spans, found.throughput) == ({"a": (0, 8)}, 2.0)

    def test_without_memory_or_trust_nothing_is_placed(self) -> None:
        assert place([], ModelShape(8, 0.0)) == Placement(())
        assert place([node("a", 1.0, 7)], ModelShape(8, 0.0)).throughput == 0
        assert place([node("a", 1.0, 9, edge=0)], ModelShape(8, 0.0)).throughput == 0

    def test_nodes_that_are_alike_are_grouped(self) -> None:
        """A slow node with much memory would slow down two quick ones with little."""
        nodes = [node("a", 100.0, 4, edge=4), node("b", 30.0, 9), node("c", 100.0, 4, edge=4)]
        found = place(nodes, ModelShape(8, 0.0))
        assert [set(pipeline.spans) for pipeline in found.pipelines] == [{"a", "c"}, {"b"}]

    def test_many_nodes_become_replicas_of_one_pipeline(self) -> None:
        nodes = [node(f"n{n:02}", 5.0 + n % 7, 4 + n % 3) for n in range(60)]
        found = place(nodes, ModelShape(8, 1.0))
        [pipeline] = found.pipelines
        assert {name for stage in pipeline.stages for name in stage.node_ids} == {
            n.node_id for n in nodes
        }
        assert found.throughput >= 0.95 * sum(n.speed for n in nodes) / 9

    def test_of_many_nodes_only_the_trusted_have_the_edge(self) -> None:
        nodes = [node(f"n{n:02}", 5.0, 6, edge=5 if n % 3 == 0 else 0) for n in range(60)]
        found = place(nodes, ModelShape(8, 1.0))
        check(found, nodes, ModelShape(8, 1.0))
        assert found.throughput >= 0.95 * sum(n.speed for n in nodes) / 9

    @quick
    @given(candidates(), models)
    def test_it_is_near_the_best_of_all(self, nodes: list[Candidate], model: ModelShape) -> None:
        best = best_throughput(nodes, model)
        for found in (place(nodes, model), place(nodes, model, exact=0)):
            check(found, nodes, model)
            assert found.throughput >= NEAR_ENOUGH * best
            bound = sum(n.speed for n in nodes) / (model.layers + model.edge_work)
            assert found.throughput <= bound * (1 + 1e-9)

    @pytest.mark.slow
    @settings(max_examples=50, deadline=None)
    @given(candidates(least=9, most=24, layers=12), st.integers(4, 12))
    def test_larger_clusters_cover_all_layers_if_they_can(
        self, nodes: list[Candidate], layers: int
    ) -> None:
        model = ModelShape(layers, 0.9)
        found = place(nodes, model)
        check(found, nodes, model)
        assert found == place(nodes[::-1], model)
        trusted = [n for n in nodes if n.edge_capacity]
        lost = min((n.capacity - n.edge_capacity for n in trusted), default=0)
        together = sum(n.capacity for n in nodes) - lost
        assert bool(found.pipelines) == bool(trusted and together >= layers)


class TestFlow:
    def test_replicas_carry_together(self) -> None:
        nodes = {n.node_id: n for n in (node("a", 8.0), node("b", 8.0), node("c", 16.0))}
        spans = {"a": (0, 4), "b": (0, 4), "c": (4, 8)}
        assert throughput(nodes, spans, ModelShape(8, 0.0)) == 4
        del spans["b"]
        assert throughput(nodes, spans, ModelShape(8, 0.0)) == 2

    def test_an_edge_that_is_not_trusted_carries_nothing(self) -> None:
        nodes = {"a": node("a", 8.0, edge=0)}
        assert throughput(nodes, {"a": (0, 8)}, ModelShape(8, 0.0)) == 0

    @quick
    @given(
        candidates(most=7),
        st.lists(st.tuples(st.integers(0, 5), st.integers(1, 6)), min_size=7, max_size=7),
    )
    def test_the_largest_flow_is_the_smallest_cut(
        self, nodes: list[Candidate], drawn: list[tuple[int, int]]
    ) -> None:
        model = ModelShape(6, 0.9)
        spans = {
            n.node_id: (start, end)
            for n, (start, end) in zip(nodes, drawn, strict=False)
            if start < end
        }
        rates = {n.node_id: n.rate(spans[n.node_id], model) for n in nodes if n.node_id in spans}
        cuts = [{0, *inner} for size in range(6) for inner in combinations(range(1, 6), size)]
        smallest = min(
            sum(
                rates[name]
                for name, (start, end) in spans.items()
                if start in cut and end not in cut
            )
            for cut in cuts
        )
        found = throughput({n.node_id: n for n in nodes}, spans, model)
        assert found == pytest.approx(smallest, abs=1e-6)


def check(found: Placement, nodes: list[Candidate], model: ModelShape) -> None:
    """Every pipeline covers all layers once, on nodes of its own that hold their spans."""
    known = {n.node_id: n for n in nodes}
    stages = [stage for pipeline in found.pipelines for stage in pipeline.stages]
    assert len(found.spans) == sum(len(stage.node_ids) for stage in stages)
    for pipeline in found.pipelines:
        ends = [0, *(stage.span[1] for stage in pipeline.stages)]
        assert [stage.span[0] for stage in pipeline.stages] == ends[:-1]
        assert ends[-1] == model.layers
    for stage in stages:
        serving = [known[name] for name in stage.node_ids]
        assert stage.span[0] < stage.span[1]
        assert all(n.holds(stage.span) for n in serving)
        assert stage.rate == pytest.approx(sum(n.rate(stage.span, model) for n in serving))
    together = throughput(known, found.spans, model)
    assert together >= found.throughput * (1 - 1e-6)
