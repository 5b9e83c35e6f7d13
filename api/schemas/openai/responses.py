"""A request for a response (OpenAI's Responses API, and Open Responses)."""

import secrets
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StringConstraints

from api.schemas.base import ModelId, RequestBody
from api.schemas.openai.fields import Ignored, MaxTokens, ServiceTier, Unserved
from api.schemas.openai.messages import Lenient
from api.schemas.openai.response_input import InputItem, chat_messages
from api.schemas.openai.sampling import LEAST_TOP_P, SEED_MASK, Penalty
from api.schemas.openai.tools import (
    MAX_TOOLS,
    FunctionName,
    JsonObjectFormat,
    TextFormat,
    plain,
)
from market.catalog.models import Model
from market.chat.preparation import Chat
from market.routing.tiers import Tier
from mesh.wire import SamplingParams
from mesh.wire.limits import MAX_TOP_LOGPROBS

MAX_ITEMS = 2048

LOGPROBS = "message.output_text.logprobs"
"""What `include` names to get log-probabilities."""


class ResponseTool(Lenient):
    """A function. OpenAI's own tools (search, files, code, ...) are not served."""

    type: Literal["function"]
    name: FunctionName
    description: Annotated[str, StringConstraints(max_length=2**14)] | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    def as_chat_tool(self) -> dict[str, Any]:
        """In the form of chat completions."""
        function = {
            name: value
            for name in ("name", "description", "parameters", "strict")
            if (value := getattr(self, name)) is not None
        }
        return {"type": "function", "function": function}


class NamedResponseTool(Lenient):
    type: Literal["function"]
    name: FunctionName


class ResponseJsonSchema(Lenient):
    type: Literal["json_schema"]
    name: FunctionName
    schema_: dict[str, Any] = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


ResponseTextFormat = Annotated[
    TextFormat | JsonObjectFormat | ResponseJsonSchema, Field(discriminator="type")
]


class TextOptions(Lenient):
    format: ResponseTextFormat | None = None
    verbosity: Ignored = None


class Reasoning(Lenient):
    effort: Literal["none"] | None = None
    summary: Ignored = None
    generate_summary: Ignored = None


def _items(value: Any) -> Any:
    """A text is one message of the user."""
    return [{"role": "user", "content": value}] if isinstance(value, str) else value


class ResponseBody(RequestBody):
    """OpenAI's request for a response. It is stateless: nothing is stored, whatever ``store`` says,
    so that ``input`` has all of the conversation. What is not served is refused by name."""

    model: ModelId
    input: Annotated[
        list[InputItem], Field(min_length=1, max_length=MAX_ITEMS), BeforeValidator(_items)
    ]
    instructions: str | None = None
    max_output_tokens: MaxTokens | None = None
    """Without it, as many as fit."""
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    """Not OpenAI's: the same seed and request give the same text."""
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    include: list[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]] | None = (
        None
    )
    text: TextOptions | None = None
    tools: Annotated[list[ResponseTool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedResponseTool | None = None
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    stream: bool | None = None
    background: bool | None = None
    """Answer at once, and go on although the client goes away: see `GET /v1/responses/{id}`."""
    truncation: Literal["disabled"] | None = None
    service_tier: ServiceTier = Tier.STANDARD
    metadata: dict[str, str] | None = None
    store: Ignored = None
    user: Ignored = None
    safety_identifier: Ignored = None
    prompt_cache_key: Ignored = None
    prompt_cache_retention: Ignored = None
    stream_options: Ignored = None
    max_tool_calls: Ignored = None
    previous_response_id: Unserved = None
    conversation: Unserved = None
    prompt: Unserved = None
    context_management: Unserved = None

    @property
    def logprobs(self) -> int | None:
        """See :class:`mesh.wire.SamplingParams`."""
        wanted = LOGPROBS in (self.include or ()) or self.top_logprobs
        return (self.top_logprobs or 0) if wanted else None

    def chat(self) -> Chat:
        """What it says of the chat, in the form of chat completions.

        Raises:
            InvalidRequest: see :func:`api.schemas.openai.response_input.chat_messages`.
        """
        choice = self.tool_choice
        return Chat(
            messages=chat_messages(self.instructions, self.input),
            tools=[tool.as_chat_tool() for tool in self.tools or ()],
            tool_choice={"type": "function", "function": {"name": choice.name}}
            if isinstance(choice, NamedResponseTool)
            else choice,
            parallel=self.parallel_tool_calls is not False,
            response_format=self._response_format(),
        )

    def sampling_params(self, model: Model, grammar: str) -> SamplingParams:
        """
        Args:
            model: Whose recommendations count where the request names nothing.
            grammar: What the text has to follow; empty if it is free.
        """
        defaults = model.sampling_defaults
        temperature = defaults.temperature if self.temperature is None else self.temperature
        return SamplingParams(
            temperature=temperature,
            top_p=max(defaults.top_p if self.top_p is None else self.top_p, LEAST_TOP_P),
            seed=secrets.randbits(63) if self.seed is None else self.seed & SEED_MASK,
            stop=[],
            top_k=defaults.top_k,
            min_p=defaults.min_p,
            frequency_penalty=self.frequency_penalty or 0.0,
            presence_penalty=self.presence_penalty or 0.0,
            logprobs=self.logprobs,
            grammar=grammar,
        )

    def echo(self, model: Model) -> dict[str, Any]:
        """What a response repeats of its request."""
        return {
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens,
            "max_tool_calls": None,
            "model": model.id,
            "parallel_tool_calls": self.parallel_tool_calls is not False,
            "previous_response_id": None,
            "prompt_cache_key": None,
            "reasoning": {"effort": None, "summary": None},
            "safety_identifier": None,
            "service_tier": "default",
            "store": False,
            "background": bool(self.background),
            "temperature": model.sampling_defaults.temperature
            if self.temperature is None
            else self.temperature,
            "top_p": model.sampling_defaults.top_p if self.top_p is None else self.top_p,
            "presence_penalty": self.presence_penalty or 0.0,
            "frequency_penalty": self.frequency_penalty or 0.0,
            "text": {"format": plain(self.text and self.text.format) or {"type": "text"}},
            "tool_choice": plain(self.tool_choice) or "auto",
            "tools": [
                {"parameters": None, "strict": None, "description": None} | plain(tool)
                for tool in self.tools or ()
            ],
            "top_logprobs": self.top_logprobs or 0,
            "truncation": "disabled",
            "metadata": self.metadata or {},
            "user": None,
        }

    def _response_format(self) -> dict[str, Any] | None:
        chosen = self.text and self.text.format
        if not isinstance(chosen, ResponseJsonSchema):
            formatted: dict[str, Any] | None = plain(chosen)
            return formatted
        schema = plain(chosen)
        del schema["type"]
        return {"type": "json_schema", "json_schema": schema}
