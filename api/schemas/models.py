"""Models on offer, their files."""

from typing import Self

from pydantic import BaseModel, Field

from api.schemas.base import RequestBody, WalletAddress, amounts_far
from market.routing.coverage import Coverage


class ModelOnOffer(BaseModel):
    id: str
    name: str
    active_nodes: int
    available: bool
    """Whether every layer has a healthy node now that serves for the price."""
    avg_latency_ms: float | None
    """Of one token along the best route, with its hops; none while there is no route."""
    price_per_token_far: float
    price_per_token_far_exact: str
    price_per_prompt_token_far: float
    price_per_prompt_token_far_exact: str
    price_per_cached_prompt_token_far: float
    """Of a prompt's beginning that all nodes have computed before."""
    price_per_cached_prompt_token_far_exact: str
    min_vram_gb: int
    layers: int
    context_tokens: int
    batch_invariant: bool
    """Whether a request gives the same tokens whoever runs beside, after a failover too: all nodes
    that serve the model say so."""

    @classmethod
    def of(cls, coverage: Coverage) -> Self:
        model, route = coverage.model, coverage.route
        return cls(
            id=model.id,
            name=model.name,
            active_nodes=len(coverage.nodes),
            available=coverage.missing is None,
            avg_latency_ms=sum(node.latency_ms + node.hop_ms for node in route) if route else None,
            **amounts_far(
                price_per_token=model.prices.token,
                price_per_prompt_token=model.prices.prompt_token,
                price_per_cached_prompt_token=model.prices.cached_prompt_token,
            ),
            min_vram_gb=model.min_vram_gb,
            layers=model.layers,
            context_tokens=model.context,
            batch_invariant=bool(coverage.nodes)
            and all(node.batch_invariant for node in coverage.nodes),
        )


class Models(BaseModel):
    models: list[ModelOnOffer]


class ModelFile(BaseModel):
    name: str
    size: int
    sha256: str
    url: str
    """Gives ranges; may be relative to the URL of this list. It may expire: ask again then."""


class ModelFiles(BaseModel):
    model_id: str
    expires_in: int
    """Seconds for which the URLs are good."""
    manifest_sha256: str
    """Of the file `far-mesh-manifest.json`, which has the SHA-256 of every tensor."""
    files: list[ModelFile]


class SignedRequestBody(RequestBody):
    wallet_address: WalletAddress
    nonce: str = Field(max_length=64)
    expires_at: str = Field(max_length=20)
    """When the signature expires, as it was signed: in UTC, such as 2035-01-31T12:00:00Z."""
    signature: str = Field(max_length=200)
