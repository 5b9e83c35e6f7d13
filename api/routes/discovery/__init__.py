"""/api/discovery: active nodes, the DHT, and probes of a connection."""
