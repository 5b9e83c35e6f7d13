"""What `far-node doctor` measures, and a model's shape."""

from tests.conftest import MODEL_ID
from tests.support.api import (
    LAYERS,
    Gateway,
    problem,
)


async def test_probes_carry_what_was_asked_for_and_no_more(gateway: Gateway) -> None:
    probe = "/api/discovery/probe"
    assert (await gateway.client.get(probe)).content == b""
    assert len((await gateway.client.get(probe, params={"bytes": 100_000})).content) == 100_000
    too_many = await gateway.client.get(probe, params={"bytes": 2**30})
    assert too_many.status_code == 422
    sent = await gateway.client.post(probe, content=bytes(70_000))
    assert sent.json() == {"bytes": 70_000}
    problem(await gateway.client.post(probe, content=bytes(2**21)), 413, "body_too_large")


async def test_a_models_shape(gateway: Gateway) -> None:
    shape = (await gateway.client.get(f"/api/discovery/config/{MODEL_ID}")).json()
    assert (shape["model_type"], shape["num_hidden_layers"]) == ("llama", LAYERS)
    problem(await gateway.client.get("/api/discovery/config/none"), 404, "model_not_found")
