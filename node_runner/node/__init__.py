"""One node: starts, serves, rebalances, drains."""
