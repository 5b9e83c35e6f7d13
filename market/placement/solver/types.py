"""What the solver takes and what it returns: candidates and spans, stages and pipelines."""

from dataclasses import dataclass

Span = tuple[int, int]
"""Layers ``[start, end)``. A node that serves layer 0 holds the edge, too."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """``layers``: decoder layers. ``edge_work``: the edge's work for a token, in layers (the
    catalog has it in thousandths)."""

    layers: int
    edge_work: float


@dataclass(frozen=True, slots=True)
class Candidate:
    """A node, as far as it matters what it could serve.

    ``speed``: layers a second. ``capacity``: layers that its memory holds, with their KV cache.
    ``edge_capacity``: layers that its memory holds beside the edge; 0 where the edge does not fit,
    or the node is not trusted with it. ``layer_bytes``, ``edge_bytes``: what the node loads for a
    layer and for the edge, at ``load_speed`` bytes a second. ``movable``: whether the node may be
    given another span than the one that it serves.
    """

    node_id: str
    speed: float
    capacity: int
    edge_capacity: int
    layer_bytes: int
    edge_bytes: int
    load_speed: float
    movable: bool = True

    def holds(self, span: Span) -> bool:
        """Whether the node's memory holds a span, and the edge if the span begins at layer 0."""
        start, end = span
        return end - start <= (self.capacity if start else self.edge_capacity)

    def rate(self, span: Span, model: ModelShape) -> float:
        """Steps a second through a span; 0 for a span that the node does not hold."""
        if not self.holds(span):
            return 0.0
        start, end = span
        return self.speed / (end - start + (0.0 if start else model.edge_work))


@dataclass(frozen=True, slots=True)
class Stage:
    """A pipeline's part that is served by one node, or by several replicas. ``rate``: steps a
    second of all replicas together."""

    node_ids: tuple[str, ...]
    span: Span
    rate: float


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Stages that cover the model once, in the order of the layers."""

    stages: tuple[Stage, ...]

    @property
    def rate(self) -> float:
        """Steps a second of the pipeline: those of its slowest stage."""
        return min(stage.rate for stage in self.stages)

    @property
    def spans(self) -> dict[str, Span]:
        """The span of each node, by node id."""
        return {name: stage.span for stage in self.stages for name in stage.node_ids}


@dataclass(frozen=True, slots=True)
class Placement:
    """Pipelines side by side. A node in none of them has nothing to serve."""

    pipelines: tuple[Pipeline, ...]

    @property
    def throughput(self) -> float:
        """Steps a second of all pipelines together."""
        return sum(pipeline.rate for pipeline in self.pipelines)

    @property
    def spans(self) -> dict[str, Span]:
        """The span of each node, by node id."""
        return {name: span for pipeline in self.pipelines for name, span in pipeline.spans.items()}
