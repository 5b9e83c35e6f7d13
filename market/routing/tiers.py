"""What a tier asks of a node."""

from enum import StrEnum

from market.nodes.node import Node
from market.routing.request import NodeRule


class Tier(StrEnum):
    STANDARD = "standard"
    PREMIUM = "premium"
    ENTERPRISE = "enterprise"


def tier_rule(tier: str) -> NodeRule:
    """Which nodes a tier admits, for :attr:`market.routing.request.RouteRequest.tier_rule`.

    One rule for all tiers, so far: a healthy node. Nothing is measured yet that a stricter rule
    could go by, and a node's own word would be worth nothing.
    """
    return _healthy


def _healthy(node: Node) -> bool:
    return node.is_healthy
