"""Settings of a model: what is offered at which price, and where its weights are."""

from decimal import Decimal
from typing import Self

from pydantic import BaseModel, Field, model_validator


class ModelSettings(BaseModel):
    """A model that the mesh serves."""

    id: str
    path: str | None = None
    """Local folder or hub id of the checkpoint; the id itself where not given."""
    name: str | None = None
    min_nodes: int = Field(1, ge=1)
    payment_per_token: Decimal = Field(ge=0, max_digits=38, decimal_places=18)
    """FAR for each generated token."""
    payment_per_prompt_token: Decimal | None = Field(None, ge=0, max_digits=38, decimal_places=18)
    """FAR for each token of a prompt; a tenth of a generated token's where not given."""
    payment_per_cached_prompt_token: Decimal | None = Field(
        None, ge=0, max_digits=38, decimal_places=18
    )
    """FAR for each token of a prompt that all nodes had in their caches, no more than for another
    token of it; a tenth of that where not given."""
    s3: str | None = Field(None, pattern=r"^[a-z0-9][a-z0-9.-]{2,62}(/.*)?$")
    """`BUCKET/PREFIX` where `far-mesh models publish` put the weights: nodes get signed URLs."""
    weights_url: str | None = Field(None, pattern=r"^https?://")
    """URL under which the published folder lies, where it is open to everybody."""

    @model_validator(mode="after")
    def _cached_is_cheaper(self) -> Self:
        cached, prompt = self.payment_per_cached_prompt_token, self.payment_per_prompt_token
        most = self.payment_per_token / 10 if prompt is None else prompt
        if cached is not None and cached > most:
            raise ValueError(
                "payment_per_cached_prompt_token is more than payment_per_prompt_token: lower it."
            )
        return self


class WeightSettings(BaseModel):
    url_ttl: int = Field(3600, ge=60, le=7 * 24 * 3600)
    """Seconds for which a signed URL of weights is good; a node that needs longer asks again. S3
    allows a week."""
    manifest_ttl: float = Field(60, ge=0)
    """Seconds for which a model's manifest is kept before it is read again."""
