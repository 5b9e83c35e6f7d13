"""Which layers each node serves. Pure functions: the same measurements give the same placement.

::

    parts      what goes in and comes out, and its units
    capacity   what a node could serve, from its memory and its measured step
    filling    one pipeline: its layers over its nodes
    crowd      one pipeline of many nodes, by replicas
    pipelines  a swarm: its nodes over pipelines
    flow       what spans that are there carry together, and where that is least
    joining    a node more, and nobody moves
    moving     one move, if it pays
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
