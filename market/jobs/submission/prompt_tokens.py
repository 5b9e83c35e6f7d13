"""A request's prompts as tokens, and whatever can be refused before they are known."""

from market.catalog.models import Model
from market.errors import InvalidRequest
from market.jobs.errors import ContextExceeded
from market.jobs.request import JobRequest, Prompt, TextPrompt
from market.routing.tiers import Tier


def check(model: Model, request: JobRequest, max_prompt_chars: int) -> None:
    """Refuse, without tokenizing its prompts, what cannot be served whatever the tokens are.

    Raises:
        InvalidRequest: a prompt or the tier is not what can be served here.
        ContextExceeded: a prompt and its answer are longer than the model's context in any case.
    """
    characters = sum(len(each.text) for each in request.prompts if isinstance(each, TextPrompt))
    if characters > max_prompt_chars:
        raise InvalidRequest(
            f"prompt: {characters} characters; at most {max_prompt_chars} are allowed.",
            code="prompt_too_long",
        )
    if request.tier is not Tier.STANDARD:
        raise InvalidRequest(
            f"tier: {request.tier} is not offered here yet; use standard.", code="tier_unavailable"
        )
    for prompt in request.prompts:
        _check_context(model, _least(model, prompt), request.max_tokens or 1, at_least=True)


def least_positions(model: Model, request: JobRequest) -> int:
    """As many KV positions as the request takes at least, known at once."""
    prompts = sum(_least(model, prompt) for prompt in request.prompts)
    return request.choices * (prompts + len(request.prompts) * (request.max_tokens or 1))


def likely_positions(model: Model, request: JobRequest, default_max_tokens: int) -> int:
    """About as many KV positions as the request takes, known at once."""
    max_tokens = request.max_tokens or min(default_max_tokens, model.context)
    prompts = sum(
        model.likely_tokens(prompt.text)
        if isinstance(prompt, TextPrompt)
        else len(prompt.token_ids)
        for prompt in request.prompts
    )
    return request.choices * (prompts + len(request.prompts) * max_tokens)


def tokenize(model: Model, request: JobRequest) -> list[list[int]]:
    """The tokens of each prompt. A long one takes a processor for a second.

    Raises:
        InvalidRequest: a prompt is none for this model.
        ContextExceeded: a prompt and its answer are longer than the model's context.
    """
    prompts = [_token_ids(model, prompt) for prompt in request.prompts]
    for token_ids in prompts:
        _check_context(model, len(token_ids), request.max_tokens or 1)
    return prompts


def _least(model: Model, prompt: Prompt) -> int:
    if isinstance(prompt, TextPrompt):
        return model.least_tokens(prompt.text)
    return len(prompt.token_ids)


def _check_context(
    model: Model, prompt_tokens: int, max_tokens: int, *, at_least: bool = False
) -> None:
    if prompt_tokens + max_tokens <= model.context:
        return
    raise ContextExceeded(
        f"{'At least ' if at_least else ''}{prompt_tokens} tokens of prompt and max_tokens "
        f"{max_tokens} exceed the model's context of {model.context} tokens."
    )


def _token_ids(model: Model, prompt: Prompt) -> list[int]:
    token_ids = _encode(model, prompt) if isinstance(prompt, TextPrompt) else list(prompt.token_ids)
    if not token_ids:
        raise InvalidRequest("prompt: there is nothing in it to continue.", code="prompt_empty")
    highest = max(token_ids)
    if highest >= model.vocab or min(token_ids) < 0:
        name = model.tokenizer.id_to_token(highest) if highest >= model.vocab else None
        unknown = repr(name) if name is not None else f"ids outside 0 to {model.vocab - 1}"
        raise InvalidRequest(
            f"prompt: {model.id} has no embedding for its token {unknown}; leave it out.",
            code="prompt_token_unknown",
        )
    return token_ids


def _encode(model: Model, prompt: TextPrompt) -> list[int]:
    try:
        # Of the tokenizer's calls this one lets go of the interpreter while it works.
        [encoded] = model.tokenizer.encode_batch_fast(
            [prompt.text], add_special_tokens=prompt.add_special_tokens
        )
    except Exception:  # it raises nothing more special
        raise InvalidRequest(
            f"prompt: the tokenizer of {model.id} cannot read it.", code="prompt_malformed"
        ) from None
    token_ids: list[int] = encoded.ids
    return token_ids
