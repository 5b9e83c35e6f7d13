"""A user's request for a generation, independent of the HTTP endpoint."""

from collections.abc import Sequence
from dataclasses import dataclass

from market.geo.distance import Coordinates
from market.routing.tiers import Tier


@dataclass(frozen=True, slots=True)
class JobRequest:
    """A generation that a user asks for.

    ``temperature`` 0 chooses the likeliest token each time. ``seed``: the same seed and request
    give the same text; none for any. ``stop``: texts before any of which the generation ends.
    ``near``: about where the user is, in whole degrees.
    """

    model_id: str
    prompt: str
    max_tokens: int
    temperature: float
    top_p: float
    seed: int | None = None
    stop: Sequence[str] = ()
    tier: Tier = Tier.STANDARD
    near: Coordinates | None = None


@dataclass(frozen=True, slots=True)
class Idempotency:
    """``key``: the user's own name for the request; none if he gave none. ``digests``: of all
    that he asked for, by each of our keys, so that the same key of his cannot stand for another
    request; the first is kept."""

    key: str | None
    digests: list[bytes]
