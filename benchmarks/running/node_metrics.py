"""Counters that a node exposes on its Prometheus port."""

from dataclasses import dataclass

import httpx
from prometheus_client.parser import text_string_to_metric_families

from stack.development_stack import DevelopmentStack


@dataclass(frozen=True, slots=True)
class NodeMetrics:
    """Totals since the node's start. ``computing``: seconds of wall clock within the engine."""

    computing: float
    positions: float
    drafted: float
    accepted: float
    kv_used: float
    """Bytes that generations hold now; the later value in a difference."""

    def __sub__(self, before: "NodeMetrics") -> "NodeMetrics":
        return NodeMetrics(
            self.computing - before.computing,
            self.positions - before.positions,
            self.drafted - before.drafted,
            self.accepted - before.accepted,
            self.kv_used,
        )


def read(stack: DevelopmentStack, node: str) -> NodeMetrics:
    """``node``: its name under the supervisor, such as ``node-0``, which holds the edge."""
    answer = httpx.get(f"http://127.0.0.1:{stack.metrics_ports[node]}/metrics").raise_for_status()
    values = {
        sample.name: sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
        if not sample.labels
    }
    return NodeMetrics(
        computing=values["far_node_forward_seconds_sum"],
        positions=values["far_node_positions_total"],
        drafted=values["far_node_guessed_tokens_total"],
        accepted=values["far_node_accepted_tokens_total"],
        kv_used=values["far_node_kv_used_bytes"],
    )
