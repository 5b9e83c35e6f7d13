"""How tokens are chosen: what chat and text completions have in common."""

import secrets
from typing import Annotated, TypeVar

from pydantic import Field

from api.schemas.base import ModelId, RequestBody
from api.schemas.openai.fields import (
    MAX_CHOICES,
    Ignored,
    LogitBiases,
    ServiceTier,
    StopTexts,
    StreamOptions,
)
from market.catalog.models import Model
from market.errors import InvalidRequest
from market.routing.tiers import Tier
from mesh.wire import SamplingParams

SEED_MASK = 2**63 - 1

LEAST_TOP_P = 1e-9
"""In place of 0, by which OpenAI means the likeliest token alone."""

T = TypeVar("T")

Penalty = Annotated[float, Field(ge=-2, le=2)]


class SamplingBody(RequestBody):
    """Where a request names nothing, the model's own recommendation counts
    (`generation_config.json`), and else a temperature of 1."""

    model: ModelId
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    """0 chooses the likeliest token each time."""
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=2**31 - 1)] | None = None
    """Choose among so many of the likeliest tokens; 0 or -1: among all."""
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    """The same seed and request give the same text."""
    stop: StopTexts = Field(default_factory=list)
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=2)] | None = None
    logit_bias: LogitBiases = Field(default_factory=dict)
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    """Answers to the same prompt. Each is a job of its own, with its own cost."""
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    service_tier: ServiceTier = Tier.STANDARD
    user: Ignored = None
    metadata: Ignored = None
    store: Ignored = None
    safety_identifier: Ignored = None
    prompt_cache_key: Ignored = None
    prompt_cache_retention: Ignored = None
    usage: Ignored = None

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with its usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def sampling_params(
        self, model: Model, *, logprobs: int | None, grammar: str = ""
    ) -> SamplingParams:
        """
        Args:
            model: Whose recommendations count where the request names nothing.
            logprobs: See :class:`mesh.wire.SamplingParams`.
            grammar: What the text has to follow; empty if it is free.

        Raises:
            InvalidRequest: a bias for a token that the model does not have.
        """
        unknown = [token for token in self.logit_bias if token >= model.vocab]
        if unknown:
            raise InvalidRequest(
                f"logit_bias: {model.id} has no token {unknown[0]}.",
                code="logit_bias_token_unknown",
                param="logit_bias",
            )
        defaults = model.sampling_defaults
        top_p = _or(self.top_p, defaults.top_p)
        return SamplingParams(
            temperature=_or(self.temperature, defaults.temperature),
            top_p=max(top_p, LEAST_TOP_P),
            seed=secrets.randbits(63) if self.seed is None else self.seed & SEED_MASK,
            stop=self.stop,
            top_k=min(max(_or(self.top_k, defaults.top_k), 0), model.vocab),
            min_p=_or(self.min_p, defaults.min_p),
            repetition_penalty=self.repetition_penalty,
            frequency_penalty=self.frequency_penalty or 0.0,
            presence_penalty=self.presence_penalty or 0.0,
            logit_bias=self.logit_bias,
            logprobs=logprobs,
            grammar=grammar,
        )


def _or(value: T | None, default: T) -> T:
    return default if value is None else value
