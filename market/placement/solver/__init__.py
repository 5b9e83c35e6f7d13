"""Which layers each node serves. Pure functions: the same measurements give the same placement.

::

    types                what goes in and comes out, and its units
    capacity             what a node could serve, from its memory and its measured step
    water_filling        one pipeline: its layers over its nodes
    replicated_pipeline  one pipeline whose stages have replicas
    pipeline_grouping    a cluster: its nodes over pipelines
    local_search         nodes exchanged between pipelines while that helps
    max_flow             the throughput of the present spans, and its bottleneck
    join                 the span of one more node, while no other span changes
    rebalance_proposals  changes of spans that are worth evaluating
    rebalance            the change that pays most, if one pays
"""

from market.placement.solver.capacity import candidate, measured_speed
from market.placement.solver.join import join
from market.placement.solver.max_flow import throughput
from market.placement.solver.pipeline_grouping import place
from market.placement.solver.rebalance import Policy, RebalancePlan, SpanChange, propose
from market.placement.solver.types import Candidate, ModelShape, Pipeline, Placement, Span, Stage
from market.placement.solver.water_filling import even_split

__all__ = [
    "Candidate",
    "ModelShape",
    "Pipeline",
    "Placement",
    "Policy",
    "RebalancePlan",
    "Span",
    "SpanChange",
    "Stage",
    "candidate",
    "even_split",
    "join",
    "measured_speed",
    "place",
    "propose",
    "throughput",
]
