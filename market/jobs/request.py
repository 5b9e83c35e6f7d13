"""A user's request for generations, independent of the HTTP endpoint."""

from collections.abc import Sequence
from dataclasses import dataclass

from market.geo.distance import Coordinates
from market.routing.tiers import Tier
from mesh.wire import SamplingParams


@dataclass(frozen=True, slots=True)
class TextPrompt:
    """``add_special_tokens``: whether the tokenizer adds its own, such as BOS. What a chat template
    has rendered contains them."""

    text: str
    add_special_tokens: bool = True


@dataclass(frozen=True, slots=True)
class TokenPrompt:
    """A prompt that its user has tokenized."""

    token_ids: Sequence[int]


Prompt = TextPrompt | TokenPrompt


@dataclass(frozen=True, slots=True)
class JobRequest:
    """Generations that a user asks for at once: ``choices`` of each prompt. Each is a job, and all
    are accepted or none.

    ``max_tokens``: of each; none for as many as fit, up to what the settings say. ``sampling``: of
    the first choice; the others are drawn with the seeds that follow its seed. ``near``: about
    where the user is, in whole degrees. ``kept_form``: what has to be known to give the answer
    again in the form that was asked for, kept as long as the answer; none if that is given once.
    """

    model_id: str
    prompts: Sequence[Prompt]
    max_tokens: int | None
    sampling: SamplingParams
    choices: int = 1
    tier: Tier = Tier.STANDARD
    near: Coordinates | None = None
    kept_form: bytes | None = None

    @property
    def generations(self) -> int:
        """Number of jobs."""
        return len(self.prompts) * self.choices


@dataclass(frozen=True, slots=True)
class Idempotency:
    """``key``: the user's own name for the request; none if he gave none. ``digests``: of all
    that he asked for, by each of our keys, so that the same key of his cannot stand for another
    request; the first is kept. ``retry``: whether his client says that it has sent the request
    before."""

    key: str | None
    digests: list[bytes]
    retry: bool = False
