"""Models on offer, in OpenAI's form; beside its fields, those of OpenRouter that tell prices and
limits."""

from typing import Literal, Self

from pydantic import BaseModel

from market.money import format_exact
from market.routing.coverage import Coverage

SUPPORTED_PARAMETERS = [
    "frequency_penalty",
    "logit_bias",
    "logprobs",
    "max_tokens",
    "min_p",
    "presence_penalty",
    "repetition_penalty",
    "response_format",
    "seed",
    "stop",
    "structured_outputs",
    "temperature",
    "top_k",
    "top_logprobs",
    "top_p",
]

CHAT_PARAMETERS = ["tool_choice", "tools"]
"""Of models that have a chat template."""


class Pricing(BaseModel):
    """FAR a token, exact."""

    prompt: str
    completion: str
    input_cache_read: str


class Architecture(BaseModel):
    modality: Literal["text->text"] = "text->text"
    input_modalities: list[Literal["text"]] = ["text"]
    output_modalities: list[Literal["text"]] = ["text"]


class ModelObject(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int = 0
    """OpenAI's field; not known here."""
    owned_by: str = "far-mesh"
    name: str
    context_length: int
    available: bool
    """Whether every layer has a healthy node now that serves for the price."""
    chat: bool
    """Whether it has a chat template; without one it only continues texts."""
    pricing: Pricing
    architecture: Architecture = Architecture()
    supported_parameters: list[str]

    @classmethod
    def of(cls, coverage: Coverage) -> Self:
        model = coverage.model
        chat = model.chat_template is not None
        return cls(
            id=model.id,
            name=model.name,
            context_length=model.context,
            available=coverage.missing is None,
            chat=chat,
            pricing=Pricing(
                prompt=format_exact(model.prices.prompt_token),
                completion=format_exact(model.prices.token),
                input_cache_read=format_exact(model.prices.cached_prompt_token),
            ),
            supported_parameters=SUPPORTED_PARAMETERS + (CHAT_PARAMETERS if chat else []),
        )


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelObject]
