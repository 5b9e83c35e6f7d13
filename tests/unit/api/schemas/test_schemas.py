"""The specification's data models (§8) have its fields, under its names."""

import pytest
from pydantic import BaseModel, ValidationError

from api.schemas import jobs, nodes, providers
from market.jobs.tables import JobStatus
from market.routing import tiers

SPECIFIED = {
    nodes.RegistrationBody: "wallet_address model_id gpu_model vram_gb public_addr location",
    nodes.HeartbeatBody: (
        "node_id model_id is_healthy latency_ms throughput_tokens_per_sec current_requests "
        "gpu_utilization_percent vram_used_gb"
    ),
    jobs.JobView: "request_id model_id started_at completed_at status tier",
    jobs.ContributionView: "node_id wallet_address tokens_contributed payment_far",
    providers.ProviderStats: (
        "wallet_address total_tokens_served total_earned_far active_nodes uptime_percent "
        "avg_latency_ms reliability_score total_requests_served failed_requests"
    ),
}


@pytest.mark.parametrize("model", SPECIFIED, ids=lambda model: model.__name__)
def test_a_model_has_the_fields_of_the_specification(model: type[BaseModel]) -> None:
    assert set(SPECIFIED[model].split()) <= set(model.model_fields)


def test_a_session_never_carries_its_prompt() -> None:
    assert "prompt" not in jobs.JobView.model_fields


def test_statuses_and_tiers_are_those_of_the_specification() -> None:
    assert [*JobStatus] == ["pending", "active", "completed", "failed"]
    assert [*tiers.Tier] == ["standard", "premium", "enterprise"]


@pytest.mark.parametrize(
    "changed", [{"uptime_percent": 100.1}, {"reliability_score": 1.1}, {"wallet_address": "0x1"}]
)
def test_statistics_out_of_their_range_are_refused(changed: dict[str, object]) -> None:
    figures: dict[str, object] = dict.fromkeys(providers.ProviderStats.model_fields, 0)
    figures["wallet_address"] = "0x" + "aa" * 20
    assert providers.ProviderStats.model_validate(figures)
    with pytest.raises(ValidationError):
        providers.ProviderStats.model_validate(figures | changed)


def test_layers_are_integers_as_json_schema_counts_them() -> None:
    body = {
        "node_id": "node",
        "is_healthy": True,
        "latency_ms": 1,
        "throughput_tokens_per_sec": 1,
        "current_requests": 0,
        "serves": [[0.0, 4]],
        "cannot_serve": [4, 6.0],
    }
    heartbeat = nodes.HeartbeatBody.model_validate(body)
    assert heartbeat.serves == [(0, 4)]
    assert heartbeat.cannot_serve == (4, 6)
    with pytest.raises(ValidationError):
        nodes.HeartbeatBody.model_validate(body | {"serves": [[0.5, 4]]})
