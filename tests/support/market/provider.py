"""A provider whose span the platform chooses."""

from typing import Any

from mesh import signed_texts
from tests.conftest import MODEL_ID
from tests.support.gateway.api import (
    PROVIDER,
    Gateway,
)
from tests.support.gateway.signing import challenge

MEMORY_BYTES = 10**9
"""What such a node says it has."""


class Provider:
    """A node that the test plays."""

    def __init__(self, gateway: Gateway, device: str, signer: Any = PROVIDER) -> None:
        self._gateway = gateway
        self._device = device
        self._signer = signer
        self.span = (0, 0)

    async def join(
        self, pinned: tuple[int, int] | None = None, model_id: str = MODEL_ID, **changes: Any
    ) -> dict[str, Any]:
        """Register, and leave the span to the platform, unless one is pinned."""
        start, end = pinned or (None, None)
        edge = start == 0
        signed = await challenge(self._gateway.client)
        message = signed_texts.registration_message(
            wallet_address=self._signer.address,
            model_id=model_id,
            start_layer=start,
            end_layer=end,
            edge=edge,
            **signed,
        )
        body = {
            "wallet_address": self._signer.address,
            "model_id": model_id,
            "gpu_model": "CPU",
            "vram_gb": 0,
            "public_addr": "192.0.2.1:31330",
            "location": "unknown",
            "placeable": pinned is None,
            "device_id": self._device,
            "memory_bytes": MEMORY_BYTES,
            "nonce": signed["nonce"],
            "expires_at": signed["expires_at"],
            "signature": signed_texts.sign(message, self._signer.key),
        }
        if pinned is not None:
            body |= {"start_layer": start, "end_layer": end, "edge": edge}
        answer = await self._gateway.client.post(
            "/api/nodes/register-distributed", json=body | changes
        )
        node: dict[str, Any] = answer.json()
        if answer.status_code == 200:
            self.id, token = node["node_id"], node["node_token"]
            self.headers = {"Authorization": f"Bearer {token}"}
            self.span = (node["layers_served"][0], node["layers_served"][-1] + 1)
        return node

    @property
    def work(self) -> float:
        """Of a step, in layers, with the edge's."""
        start, end = self.span
        model = self._gateway.services.catalog.get(MODEL_ID)
        return end - start + (0 if start else model.edge_units / 1000)

    async def heartbeat(self, *, ms: float = 0.0, **changes: Any) -> dict[str, Any]:
        """A heartbeat of a node that needs so many milliseconds for a layer."""
        body = {
            "node_id": self.id,
            "is_healthy": True,
            "latency_ms": ms * self.work,
            "throughput_tokens_per_sec": 1,
            "memory_bytes": MEMORY_BYTES,
            "load_bytes_per_second": 1e9,
            "serves": [self.span],
        }
        answer = await self._gateway.client.post(
            "/api/nodes/heartbeat", json=body | changes, headers=self.headers
        )
        assert answer.status_code == 200, answer.text
        reply: dict[str, Any] = answer.json()
        return reply

    async def load(self, reply: dict[str, Any]) -> dict[str, Any]:
        """Load the span of a heartbeat's reply, and report it; the reply to that."""
        new = (reply["start_layer"], reply["end_layer"])
        answer = await self.heartbeat(serves=[self.span, new])
        if not answer["should_rebalance"]:
            self.span = (answer["start_layer"], answer["end_layer"])
        return answer
