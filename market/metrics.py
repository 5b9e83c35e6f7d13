"""Prometheus metrics: the specification's names (§12.1) and a few of ours.

Each counter grows in the process where the thing happens: requests and rejections in the gateway,
ends of generations and payments in the workers.
"""

from prometheus_client import Counter, Gauge, Histogram

inference_requests = Counter(
    "far_mesh_inference_requests_total",
    "Inference requests by outcome: accepted, rejected, completed, cancelled, failed",
    ["model_id", "tier", "status"],
)


inference_latency = Histogram(
    "far_mesh_inference_latency_seconds",
    "From acceptance to the last token",
    ["model_id", "tier"],
    buckets=(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900),
)


time_to_first_token = Histogram(
    "far_mesh_time_to_first_token_seconds",
    "From acceptance to the first token",
    ["model_id", "tier"],
    buckets=(0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)


waiting_jobs = Gauge(
    "far_mesh_waiting_jobs", "Jobs that wait for a route without a supervisor", ["model_id"]
)


active_nodes = Gauge(
    "far_mesh_active_nodes", "Nodes on the routes (healthy, heard within the TTL)", ["model_id"]
)


payments_released = Counter(
    "far_mesh_payments_released_total", "Payments to providers, on-chain", ["currency"]
)


payments_amount = Counter("far_mesh_payments_amount_far", "FAR paid to providers, on-chain")


settlement_paused = Gauge(
    "far_settlement_paused", "1 while settlement waits for an operator (far-mesh settle --resume)"
)


settlement_alerts = Counter(
    "far_settlement_alerts_total", "What an operator should look at", ["reason"]
)


unsettled_withdrawals = Gauge(
    "far_settlement_unsettled_withdrawals_far",
    "FAR not settled yet of users whose withdrawal would take it",
)


next_unsettled_withdrawal = Gauge(
    "far_settlement_next_unsettled_withdrawal_timestamp_seconds",
    "When the first of those withdrawals can run; 0 if there is none",
)


settlement_step = Histogram(
    "far_settlement_step_seconds",
    "Time of one step of a settlement",
    ["step"],
    buckets=(0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 120),
)


shortfall = Counter(
    "far_mesh_shortfall_far", "FAR that the contract let out, or took back, and users had spent"
)


ledger_violations = Gauge(
    "far_mesh_ledger_violations", "What the last check of the ledger found, by check", ["check"]
)


ledger_checked = Gauge(
    "far_mesh_ledger_checked_timestamp_seconds", "When the ledger was last checked to the end"
)


placement_moves = Counter(
    "far_mesh_placement_moves_total",
    "Moves of nodes to other spans, by how they ended",
    ["model_id", "state"],
)


placement_throughput = Gauge(
    "far_mesh_placement_steps_per_second",
    "Steps a second that all nodes of a model make together, by their measured speeds",
    ["model_id"],
)


placement_seconds = Histogram(
    "far_mesh_placement_seconds",
    "Time to look whether a move pays",
    buckets=(0.001, 0.01, 0.05, 0.1, 0.5, 1, 5, 30),
)


reroutes = Counter(
    "far_mesh_reroutes_total", "Generations that went on with a new epoch", ["model_id", "reason"]
)


chain_events = Counter(
    "far_mesh_chain_events_total", "Events of the escrow that the ledger has followed", ["name"]
)


chain_events_reverted = Counter(
    "far_mesh_chain_events_reverted_total",
    "Events that a reorg took back after they had counted",
    ["name"],
)


chain_reorgs = Counter(
    "far_mesh_chain_reorganisations_total", "Reorgs deeper than the confirmations"
)


foreign_batches = Counter(
    "far_mesh_foreign_batches_total", "Batches on the chain that are not as we closed them"
)


chain_index_age = Gauge(
    "far_mesh_chain_index_age_seconds",
    "Seconds since the last indexed block; grows where no run of this process ends",
)
