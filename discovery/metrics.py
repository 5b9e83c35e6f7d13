"""Peers, records, refusals."""

from prometheus_client import Counter, Gauge

dht_peers = Gauge("far_mesh_dht_peers", "Full peers of the DHT that this one knows")


dht_records = Gauge(
    "far_mesh_dht_records",
    "Nodes of a model that the DHT told of when last read",
    ["model_id"],
)


dht_refused = Counter(
    "far_mesh_dht_refused_total",
    "Records of the DHT that were refused: size, format, key, signature, credential, expiry, span",
    ["reason"],
)


dht_restored = Counter(
    "far_mesh_dht_restored_total",
    "Nodes that the DHT brought back onto the routes after Redis had lost them",
    ["model_id"],
)


dht_mirrored = Gauge(
    "far_mesh_dht_mirrored_timestamp_seconds", "When the DHT was last read to the end"
)
