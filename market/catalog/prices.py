"""What a generation costs by its tokens: of the answer, of the prompt, and of its cached prefix."""

from dataclasses import dataclass
from decimal import Decimal
from typing import Self

from market.money import floor_far, multiply
from market.settings.models import ModelSettings

CHEAPER = Decimal("0.1")
"""A prompt's token costs less than a generated one, since a forward pass takes many at once: it
makes the node's memory be read once for all of them. A cached one is copied."""


@dataclass(frozen=True, slots=True)
class Prices:
    """FAR for each token that is generated, for each of the prompt, and for each of the prompt that
    the nodes had in their caches, which is no more than that."""

    token: Decimal
    prompt_token: Decimal
    cached_prompt_token: Decimal

    @classmethod
    def of(cls, model: ModelSettings) -> Self:
        """A model's prices, where one is not set a tenth of the next higher, cut to 18 places."""
        prompt = model.payment_per_prompt_token
        if prompt is None:
            prompt = floor_far(model.payment_per_token * CHEAPER)
        cached = model.payment_per_cached_prompt_token
        if cached is None:
            cached = floor_far(prompt * CHEAPER)
        return cls(model.payment_per_token, prompt, cached)

    def most(self, prompt_tokens: int, max_tokens: int) -> Decimal:
        """What a generation costs at most: none of its prompt is cached, and the answer is as long
        as it may be."""
        return multiply(self.prompt_token, prompt_tokens) + multiply(self.token, max_tokens)
