"""A request for a chat completion."""

from typing import Annotated, Literal

from pydantic import Field

from api.schemas.openai.fields import Ignored, MaxTokens, Unserved
from api.schemas.openai.messages import MAX_MESSAGES, ChatMessage
from api.schemas.openai.sampling import SamplingBody
from api.schemas.openai.tools import ResponseFormat, ToolChoice, Tools, plain
from market.chat.preparation import Chat
from market.errors import InvalidRequest
from mesh.wire.limits import MAX_TOP_LOGPROBS


class ChatBody(SamplingBody):
    """OpenAI's request for a chat completion. What is not served is refused by name."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_tokens: MaxTokens | None = None
    max_completion_tokens: MaxTokens | None = None
    """Counts before ``max_tokens``. Without either, as many as fit."""
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    response_format: ResponseFormat | None = None
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    modalities: list[Literal["text"]] | None = None
    reasoning_effort: Literal["none"] | None = None
    verbosity: Ignored = None
    prediction: Ignored = None
    audio: Unserved = None
    function_call: Unserved = None
    functions: Unserved = None
    web_search_options: Unserved = None

    @property
    def longest(self) -> int | None:
        """Tokens to generate at most; none for as many as fit."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def reported_logprobs(self) -> int | None:
        """See :class:`mesh.wire.SamplingParams`.

        Raises:
            InvalidRequest: alternatives of log-probabilities that are not asked for.
        """
        if self.logprobs:
            return self.top_logprobs or 0
        if self.top_logprobs:
            raise InvalidRequest(
                "top_logprobs: This needs logprobs to be true.",
                code="top_logprobs_unexpected",
                param="top_logprobs",
            )
        return None

    def chat(self) -> Chat:
        """What it says of the chat.

        Raises:
            InvalidRequest: see :meth:`api.schemas.openai.messages.ChatMessage.for_template`.
        """
        return Chat(
            messages=[
                message.for_template(f"messages[{number}]")
                for number, message in enumerate(self.messages)
            ],
            tools=[plain(tool) for tool in self.tools or ()],
            tool_choice=plain(self.tool_choice),
            parallel=self.parallel_tool_calls is not False,
            response_format=plain(self.response_format),
        )
