"""What a node measures of itself: for its heartbeat, and for Prometheus."""

from prometheus_client import Counter, Gauge, Histogram

forward_batch_size = Histogram(
    "far_node_batch_size",
    "Generations packed into one forward",
    buckets=(1, 2, 4, 8, 16, 32, 64, 128),
)

forward_seconds = Histogram(
    "far_node_forward_seconds",
    "One exchange's computing",
    buckets=(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5),
)

positions_total = Counter("far_node_positions_total", "Positions computed")

draft_tokens_total = Counter("far_node_guessed_tokens_total", "Draft tokens (edge)")

accepted_tokens_total = Counter(
    "far_node_accepted_tokens_total", "Draft tokens that were accepted (edge)"
)

generations_active = Gauge("far_node_generations", "Generations that hold KV")

kv_used_bytes = Gauge("far_node_kv_used_bytes", "KV cache that is reserved")

kv_budget_bytes = Gauge("far_node_kv_budget_bytes", "KV cache in all")

announcements = Counter(
    "far_node_dht_announcements_total", "Announcements in the DHT: stored, failed", ["outcome"]
)
