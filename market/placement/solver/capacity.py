"""What a node could serve, from its memory and its measured step."""

from market.placement.solver.types import Candidate
from mesh.model.memory_footprint import Footprint


def candidate(
    node_id: str,
    footprint: Footprint,
    *,
    memory_bytes: int,
    positions: int,
    speed: float,
    load_speed: float,
    trusted: bool,
) -> Candidate:
    """A node as a candidate: its capacity in layers, from its memory.

    Args:
        footprint: The model's bytes, at the node's own quantization.
        memory_bytes: Of the device, for weights and KV cache, without what else takes memory there.
        positions: KV positions that each layer is to have, over all generations.
        speed: Layers a second, see :func:`measured_speed`.
        load_speed: Bytes of weights a second.
        trusted: Whether the operator trusts the node with the edge.

    Raises:
        ValueError: a speed that is not positive.
    """
    if speed <= 0 or load_speed <= 0:
        raise ValueError(f"{node_id}: speeds are positive, not {speed} and {load_speed}.")
    beside_edge = footprint.layers_within(memory_bytes - footprint.edge, positions=positions)
    return Candidate(
        node_id=node_id,
        speed=speed,
        capacity=footprint.layers_within(memory_bytes, positions=positions),
        edge_capacity=beside_edge if trusted else 0,
        layer_bytes=footprint.layer,
        edge_bytes=footprint.edge,
        load_speed=load_speed,
    )


def measured_speed(layers: int, step_ms: float, *, edge_work: float = 0.0) -> float:
    """Layers a second of a node whose step through ``layers`` takes ``step_ms`` milliseconds.

    ``edge_work``: the edge's work in layers, where the node holds the edge, too; else 0.

    Raises:
        ValueError: a step that took no time: the node has not served yet.
    """
    if step_ms <= 0:
        raise ValueError(f"A step takes time; got {step_ms} ms.")
    return 1000 * (layers + edge_work) / step_ms
