"""Fields of several of OpenAI's requests. A field that is null is as good as absent."""

from typing import Annotated, Any, NoReturn

from pydantic import BeforeValidator, Field, Strict, WithJsonSchema
from pydantic_core import PydanticCustomError

from api.schemas.base import RequestBody
from market.routing.tiers import Tier
from mesh.wire.limits import (
    MAX_LOGIT_BIASES,
    MAX_STOP_TEXT,
    MAX_STOP_TEXTS,
    MAX_TOKEN_ID,
    MAX_TOKENS,
)

MAX_CHOICES = 16
"""Generations of one request. Each has a route, and its own KV cache on it."""

MAX_BIAS = 100.0


def _unserved(value: Any) -> NoReturn:
    raise PydanticCustomError("unserved", "This is not served here; leave it out")


def _stop_texts(value: Any) -> Any:
    """One text, or several."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise PydanticCustomError("string_type", "Input should be a text or a list of texts")
    if len(texts) > MAX_STOP_TEXTS:
        raise PydanticCustomError("too_long", f"At most {MAX_STOP_TEXTS} texts are allowed")
    if any(len(text) > MAX_STOP_TEXT for text in texts):
        raise PydanticCustomError(
            "string_too_long", f"At most {MAX_STOP_TEXT} characters are allowed in a text"
        )
    return [text for text in texts if text]


def _biases(value: Any) -> Any:
    """Numbers by token ids, which are text in JSON."""
    if not isinstance(value, dict):
        raise PydanticCustomError("dict_type", "Input should be an object")
    if len(value) > MAX_LOGIT_BIASES:
        raise PydanticCustomError("too_long", f"At most {MAX_LOGIT_BIASES} tokens are allowed")
    biases = {}
    for token, bias in value.items():
        if not (token.isascii() and token.isdigit() and len(token) <= len(str(MAX_TOKEN_ID))):
            raise PydanticCustomError("value_error", "Each name should be a token id")
        if isinstance(bias, bool) or not isinstance(bias, int | float):
            raise PydanticCustomError("float_type", "Each value should be a number")
        if not -MAX_BIAS <= bias <= MAX_BIAS:
            raise PydanticCustomError(
                "less_than_equal", f"Each value should be from {-MAX_BIAS:g} to {MAX_BIAS:g}"
            )
        biases[int(token)] = float(bias)
    return biases


Ignored = Annotated[Any, Field(description="Accepted, and without effect here.")]

Unserved = Annotated[
    None,
    BeforeValidator(lambda value: None if value is None else _unserved(value)),
    Field(description="Not served here: only null is accepted."),
]
"""What would change the result."""

StopTexts = Annotated[
    list[str],
    BeforeValidator(lambda value: [] if value is None else _stop_texts(value)),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "maxLength": MAX_STOP_TEXT},
                {
                    "type": "array",
                    "items": {"type": "string", "maxLength": MAX_STOP_TEXT},
                    "maxItems": MAX_STOP_TEXTS,
                },
                {"type": "null"},
            ]
        }
    ),
]

LogitBiases = Annotated[
    dict[int, float],
    BeforeValidator(lambda value: {} if value is None else _biases(value)),
    WithJsonSchema(
        {
            "anyOf": [
                {
                    "type": "object",
                    "maxProperties": MAX_LOGIT_BIASES,
                    "propertyNames": {"pattern": "^[0-9]{1,10}$"},
                    "additionalProperties": {
                        "type": "number",
                        "minimum": -MAX_BIAS,
                        "maximum": MAX_BIAS,
                    },
                },
                {"type": "null"},
            ]
        }
    ),
]

MaxTokens = Annotated[int, Field(ge=1, le=MAX_TOKENS)]

TIERS = {
    "auto": Tier.STANDARD,
    "default": Tier.STANDARD,
    "standard": Tier.STANDARD,
    "priority": Tier.PREMIUM,
    "premium": Tier.PREMIUM,
    "enterprise": Tier.ENTERPRISE,
}
"""OpenAI's service tiers, and ours."""


def _service_tier(value: Any) -> Any:
    if value is None:
        return Tier.STANDARD
    if value not in TIERS:
        raise PydanticCustomError("enum", "Input should be 'auto' or 'default'")
    return TIERS[value]


ServiceTier = Annotated[
    Tier,
    Strict(False),
    BeforeValidator(_service_tier),
    WithJsonSchema(
        {"anyOf": [{"type": "string", "enum": ["auto", "default", "standard"]}, {"type": "null"}]}
    ),
]


class StreamOptions(RequestBody):
    include_usage: bool | None = None
    """End the stream with a chunk that has no choices, and the usage."""
    include_obfuscation: Ignored = None
