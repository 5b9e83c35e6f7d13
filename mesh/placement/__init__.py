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

from mesh.placement.capacity import candidate, measured_speed
from mesh.placement.filling import even_split
from mesh.placement.flow import throughput
from mesh.placement.joining import join
from mesh.placement.moving import Change, Move, Policy, propose
from mesh.placement.parts import Candidate, ModelShape, Pipeline, Placement, Span, Stage
from mesh.placement.pipelines import place

__all__ = [
    "Candidate",
    "Change",
    "ModelShape",
    "Move",
    "Pipeline",
    "Placement",
    "Policy",
    "Span",
    "Stage",
    "candidate",
    "even_split",
    "join",
    "measured_speed",
    "place",
    "propose",
    "throughput",
]
