"""A model's nodes in the solver's terms: what they measured, as candidates and spans."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from market.catalog.models import Model
from market.nodes.node import MIN_STEP_MS, Node
from market.placement.solver import Candidate, ModelShape, Span, candidate, measured_speed
from mesh.errors import UnsupportedModel
from mesh.model.compute_cost import EDGE_UNITS_PER_LAYER
from mesh.model.memory_footprint import Footprint

ASSUMED_SPEED = 1.0
"""Layers a second of nodes of which none has served yet. Only ratios of speeds matter: any number
would do."""

ASSUMED_LOAD_SPEED = 125e6
"""Bytes a second of a node that has not measured it: a gigabit."""

CPU_DTYPE_BYTES, GPU_DTYPE_BYTES = 4, 2
"""Bytes of a number on a node without and with a GPU, as nodes choose by themselves."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """What :mod:`market.placement.solver` works on. ``spans``: what nodes serve, by node id."""

    candidates: list[Candidate]
    spans: dict[str, Span]
    shape: ModelShape

    @property
    def by_id(self) -> dict[str, Candidate]:
        return {node.node_id: node for node in self.candidates}


def shape_of(model: Model) -> ModelShape:
    return ModelShape(model.layers, model.edge_units / EDGE_UNITS_PER_LAYER)


def speed_of(node: Node, model: Model) -> float | None:
    """Layers a second of a node by its last heartbeat; none if it has not served yet.

    A step counts for at least what it counts for in routes: beside a node that says it needs a
    billionth of a millisecond, the speeds of all others would be lost to rounding.
    """
    if node.latency_ms <= 0:
        return None
    step_ms = max(node.latency_ms, MIN_STEP_MS)
    edge_work = shape_of(model).edge_work if node.edge else 0.0
    return measured_speed(node.end_layer - node.start_layer, step_ms, edge_work=edge_work)


def cluster_of(
    nodes: Sequence[Node],
    model: Model,
    *,
    positions: int,
    speeds: Mapping[str, float],
    fixed: Collection[str] = (),
) -> Cluster:
    """Nodes that serve something, and their spans.

    Args:
        positions: KV positions that each layer is to have, over all generations.
        speeds: Layers a second, by node id; other nodes count as quick as the median.
        fixed: Ids of nodes whose spans are not to be changed now, besides those whose spans never
            are: their owners chose the span, or their memory is unknown.
    """
    median_of_all = median_speed(speeds)
    serving = [node for node in nodes if node.start_layer or (node.edge and node.trusted)]
    candidates = [
        _candidate(
            node,
            model,
            positions=positions,
            speed=speeds.get(node.node_id, median_of_all),
            movable=node.placeable and node.memory_bytes > 0 and node.node_id not in fixed,
        )
        for node in serving
    ]
    spans = {node.node_id: (node.start_layer, node.end_layer) for node in serving}
    return Cluster(candidates, spans, shape_of(model))


def newcomer(
    node_id: str,
    model: Model,
    *,
    quantization: str,
    vram_gb: int,
    memory_bytes: int,
    trusted: bool,
    positions: int,
    speed: float,
) -> Candidate:
    """A node that has served nothing yet, as a candidate.

    Raises:
        UnsupportedModel: the model cannot be quantized as given.
    """
    return candidate(
        node_id,
        _footprint(model, quantization, vram_gb),
        memory_bytes=memory_bytes,
        positions=positions,
        speed=speed,
        load_speed=ASSUMED_LOAD_SPEED,
        trusted=trusted,
    )


def median_speed(speeds: Mapping[str, float]) -> float:
    """Layers a second that a node counts with that has not been measured."""
    return median(speeds.values()) if speeds else ASSUMED_SPEED


def _candidate(
    node: Node, model: Model, *, positions: int, speed: float, movable: bool
) -> Candidate:
    """A node as a candidate. It holds the span that it serves, whatever memory it reports."""
    try:
        footprint = _footprint(model, node.quantization, node.vram_gb)
    except UnsupportedModel:  # the node names a quantization that does not exist
        footprint, movable = _footprint(model, "none", node.vram_gb), False
    layers, memory_bytes = node.end_layer - node.start_layer, node.memory_bytes if movable else 0
    beside_edge = footprint.layers_within(memory_bytes - footprint.edge, positions=positions)
    return Candidate(
        node_id=node.node_id,
        speed=speed,
        capacity=max(layers, footprint.layers_within(memory_bytes, positions=positions)),
        edge_capacity=max(
            beside_edge if node.trusted else 0, layers if node.start_layer == 0 else 0
        ),
        layer_bytes=footprint.layer,
        edge_bytes=footprint.edge,
        load_speed=node.load_bytes_per_second or ASSUMED_LOAD_SPEED,
        movable=movable,
    )


def _footprint(model: Model, quantization: str, vram_gb: int) -> Footprint:
    return model.footprint(
        quantization, dtype_bytes=GPU_DTYPE_BYTES if vram_gb else CPU_DTYPE_BYTES
    )
