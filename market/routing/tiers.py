"""Which nodes serve whom: by the user's tier, and by the price."""

from decimal import Decimal
from enum import StrEnum

from market.nodes.node import Node
from market.routing.request import NodeRule


def tier_rule(tier: str) -> NodeRule:
    """The rule that a tier sets for nodes, for :func:`market.routing.route_search.cheapest_route`.

    One rule for all, so far: a healthy node. Nothing is measured yet that a stricter one could go
    by, and a node's own word would be worth nothing.
    """
    return _healthy


def price_rule(price: Decimal) -> NodeRule:
    """Whether a node serves for so many FAR a token of the model."""
    return lambda node: node.min_price is None or node.min_price <= price


def _healthy(node: Node) -> bool:
    return node.is_healthy


class Tier(StrEnum):
    STANDARD = "standard"
    PREMIUM = "premium"
    ENTERPRISE = "enterprise"
