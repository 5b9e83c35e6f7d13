"""A prompt's tokens, and whatever can be refused before they are known."""

from market.catalog.models import Model
from market.errors import InvalidRequest
from market.jobs.errors import ContextExceeded
from market.jobs.request import JobRequest
from market.routing.tiers import Tier


def check(model: Model, request: JobRequest, max_prompt_chars: int) -> None:
    """Refuse, without tokenizing its prompt, what cannot be served whatever the tokens are.

    Raises:
        InvalidRequest: the prompt or the tier is not what can be served here.
        ContextExceeded: prompt and answer are longer than the model's context in any case.
    """
    if len(request.prompt) > max_prompt_chars:
        raise InvalidRequest(
            f"prompt: {len(request.prompt)} characters; at most {max_prompt_chars} are allowed.",
            code="prompt_too_long",
        )
    if request.tier is not Tier.STANDARD:
        raise InvalidRequest(
            f"tier: {request.tier} is not offered here yet; use standard.", code="tier_unavailable"
        )
    least = model.least_tokens(request.prompt)
    _check_context(model, least, request.max_tokens, at_least=True)


def tokenize(model: Model, request: JobRequest) -> list[int]:
    """The prompt's tokens. A long one takes a processor for a second.

    Raises:
        InvalidRequest: the prompt is none for this model.
        ContextExceeded: prompt and answer are longer than the model's context.
    """
    token_ids = _encode(model, request.prompt)
    _check_context(model, len(token_ids), request.max_tokens)
    return token_ids


def _check_context(
    model: Model, prompt_tokens: int, max_tokens: int, *, at_least: bool = False
) -> None:
    if prompt_tokens + max_tokens <= model.context:
        return
    raise ContextExceeded(
        f"{'At least ' if at_least else ''}{prompt_tokens} tokens of prompt and max_tokens "
        f"{max_tokens} exceed the model's context of {model.context} tokens."
    )


def _encode(model: Model, prompt: str) -> list[int]:
    try:
        # Of the tokenizer's calls this one lets go of the interpreter while it works.
        [encoded] = model.tokenizer.encode_batch_fast([prompt])
    except Exception:  # it raises nothing more special
        raise InvalidRequest(
            f"prompt: the tokenizer of {model.id} cannot read it.", code="prompt_malformed"
        ) from None
    token_ids: list[int] = encoded.ids
    if not token_ids:
        raise InvalidRequest("prompt: there is nothing in it to continue.", code="prompt_empty")
    highest = max(token_ids)
    if highest >= model.vocab:
        raise InvalidRequest(
            f"prompt: {model.id} has no embedding for its token "
            f"{model.tokenizer.id_to_token(highest)!r}; leave it out.",
            code="prompt_token_unknown",
        )
    return token_ids
