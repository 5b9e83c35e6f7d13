"""Uptime of nodes, in percent of the time since they registered."""

import datetime as dt

from sqlalchemy import ColumnElement, func

from market.nodes.tables import RegisteredNode
from market.settings.discovery import DiscoverySettings


def uptime_percent() -> ColumnElement[float]:
    """Time heard, in percent of the time since registration."""
    age = func.greatest(func.extract("epoch", func.now() - RegisteredNode.registered_at), 1)
    return func.least(100.0 * RegisteredNode.uptime_seconds / age, 100.0)


def mean_uptime_percent(discovery: DiscoverySettings) -> ColumnElement[float]:
    """The mean of :func:`uptime_percent` over a wallet's active nodes."""
    # Rows are written now and then; one of a node that died silently stays as it was.
    timeout = discovery.row_interval + discovery.health_check_interval + discovery.node_ttl
    heard = RegisteredNode.last_seen > func.now() - dt.timedelta(seconds=timeout)
    return func.avg(uptime_percent()).filter(RegisteredNode.is_active, heard)
