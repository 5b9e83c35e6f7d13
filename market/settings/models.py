"""Settings of a model: what is offered at which price, and where its weights are."""

from decimal import Decimal

from pydantic import BaseModel, Field


class ModelSettings(BaseModel):
    """A model that the mesh serves."""

    id: str
    path: str | None = None
    """Local folder or hub id of the checkpoint; the id itself where not given."""
    name: str | None = None
    min_nodes: int = Field(1, ge=1)
    payment_per_token: Decimal = Field(ge=0, max_digits=38, decimal_places=18)
    """FAR for each generated token."""
    s3: str | None = Field(None, pattern=r"^[a-z0-9][a-z0-9.-]{2,62}(/.*)?$")
    """`BUCKET/PREFIX` where `far-mesh models publish` put the weights: nodes get signed URLs."""
    weights_url: str | None = Field(None, pattern=r"^https?://")
    """URL under which the published folder lies, where it is open to everybody."""


class WeightSettings(BaseModel):
    url_ttl: int = Field(3600, ge=60, le=7 * 24 * 3600)
    """Seconds for which a signed URL of weights is good; a node that needs longer asks again. S3
    allows a week."""
    manifest_ttl: float = Field(60, ge=0)
    """Seconds for which a model's manifest is kept before it is read again."""
