"""Connections, messages, refusals."""

from prometheus_client import Counter, Gauge

relay_connections = Gauge("far_relay_connections", "Nodes connected by WebSocket, at this replica")


relay_polls = Gauge("far_relay_polls", "Long polls of nodes that wait or work, at this replica")


relay_messages = Counter("far_relay_messages_total", "Messages that nodes pushed")


relay_refusals = Counter("far_relay_refusals_total", "Messages of nodes not forwarded", ["code"])
