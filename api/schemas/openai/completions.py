"""A request for completions of texts."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from api.schemas.openai.fields import MaxTokens
from api.schemas.openai.sampling import SamplingBody
from market.jobs.request import Prompt, TextPrompt, TokenPrompt

MAX_PROMPTS = 16
"""Of one request."""

MAX_LOGPROBS = 5

DEFAULT_MAX_TOKENS = 16
"""OpenAI's."""


def _is_token_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(each) is int for each in value)


def _prompts(value: Any) -> Any:
    """One prompt or several, each a text or token ids."""
    prompts = value if isinstance(value, list) and not _is_token_ids(value) else [value]
    if not prompts:
        raise PydanticCustomError("missing", "There is no prompt")
    if len(prompts) > MAX_PROMPTS:
        raise PydanticCustomError("too_long", f"At most {MAX_PROMPTS} prompts are allowed")
    made: list[Prompt] = []
    for prompt in prompts:
        if isinstance(prompt, str):
            if not prompt:
                raise PydanticCustomError("string_too_short", "A prompt should not be empty")
            made.append(TextPrompt(prompt))
        elif _is_token_ids(prompt):
            made.append(TokenPrompt(prompt))
        else:
            raise PydanticCustomError(
                "string_type", "Each prompt should be a text or a list of token ids"
            )
    return made


_TEXT = {"type": "string", "minLength": 1}
_TOKEN_IDS = {"type": "array", "items": {"type": "integer"}, "minItems": 1}

Prompts = Annotated[
    Sequence[Any],
    BeforeValidator(_prompts),
    WithJsonSchema(
        {
            "anyOf": [
                _TEXT,
                _TOKEN_IDS,
                {"type": "array", "items": _TEXT, "minItems": 1, "maxItems": MAX_PROMPTS},
                {"type": "array", "items": _TOKEN_IDS, "minItems": 1, "maxItems": MAX_PROMPTS},
            ]
        }
    ),
]


class CompletionBody(SamplingBody):
    """OpenAI's request for completions. What is not served is refused by name."""

    prompt: Prompts
    max_tokens: MaxTokens | None = None
    """16 if not given."""
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    best_of: Literal[1] | None = None
    echo: Literal[False] | None = None
    suffix: Literal[""] | None = None

    @property
    def longest(self) -> int:
        """Tokens to generate at most."""
        return self.max_tokens or DEFAULT_MAX_TOKENS
