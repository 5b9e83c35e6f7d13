"""A checkpoint's chat template: messages into the text that the model was trained to continue.

All is as transformers' `apply_chat_template` does it, and tested to be equal to that.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

from market.catalog.checkpoint_files import CheckpointFiles
from market.catalog.rendering.renderer import TemplateRefused, TemplateRenderer
from market.errors import InvalidRequest
from mesh.errors import UnsupportedModel
from mesh.json_text import MAX_DEPTH

TOKENIZER_CONFIG = "tokenizer_config.json"

SPECIAL_TOKENS_MAP = "special_tokens_map.json"
"""Where older checkpoints have their special tokens."""

DEFAULT, TOOL_USE = "default", "tool_use"
"""Names of the templates that are used: requests with tools have the second if there is one."""

FILES = {
    DEFAULT: "chat_template.jinja",
    TOOL_USE: "additional_chat_templates/tool_use.jinja",
}
"""Where newer checkpoints have them; older ones have all in :data:`TOKENIZER_CONFIG`."""

SPECIAL_TOKENS = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
"""The special tokens that a template sees, under these names."""

REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
"""What messages call their reasoning; templates read the first of these, some the second."""

CONTINUED = "CONTINUE_FINAL_MESSAGE_TAG "
"""Marks the end of the message that is to be continued. The space shows whether the template trims
what it writes."""

MAX_REASON_CHARS = 300
"""Of what a template says about messages that it refuses. It may quote them."""


class ChatTemplate:
    """The templates of a checkpoint, mostly one: text from messages.

    A rendered text is a whole prompt. It has to be encoded **without** the special tokens that a
    tokenizer adds by itself (``add_special_tokens=False``): a template writes the token that begins
    a text where the model wants one, and there would be two.

    What users write is part of that text: where it has the form of a special token it becomes that
    token, so that a user can end his own turn, and no more than that, since the whole chat is his.
    """

    def __init__(self, templates: Mapping[str, str], special_tokens: Mapping[str, str]) -> None:
        """
        Args:
            templates: By name, :data:`DEFAULT` among them.
            special_tokens: By the names of :data:`SPECIAL_TOKENS`.
        """
        self.tool_template = templates.get(TOOL_USE, templates[DEFAULT])
        """The template of requests with tools, in Jinja."""
        self._renderers = {name: TemplateRenderer(text) for name, text in templates.items()}
        self._special_tokens = dict(special_tokens)

    @classmethod
    def load(cls, files: CheckpointFiles) -> Self | None:
        """A checkpoint's template, compiled once to see that it can be; none if it has none.

        Raises:
            UnsupportedModel: a template that does not compile, or none that is the default.
                An operator learns that when he offers the model, not a user when he writes to it.
        """
        config = files.json(TOKENIZER_CONFIG) or {}
        templates = _templates(files, config)
        if not templates:
            return None
        if DEFAULT not in templates:
            raise UnsupportedModel(
                f"The checkpoint has the chat templates {', '.join(sorted(templates))}, and none "
                f"that is named {DEFAULT}: add {FILES[DEFAULT]}."
            )
        loaded = cls(templates, _special_tokens(files, config))
        for name, renderer in loaded._renderers.items():
            try:
                renderer.check()
            except TemplateRefused as refused:
                raise UnsupportedModel(
                    f"The checkpoint's chat template {name!r} does not compile: "
                    f"{_shortened(refused)} Mend it, or remove it to offer the model without chat."
                ) from None
        return loaded

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **template_kwargs: Any,
    ) -> str:
        """The prompt that a chat is. Blocks for as long as
        :meth:`market.catalog.rendering.renderer.TemplateRenderer.render` says: call it in a thread.

        Args:
            messages: JSON objects with a ``role``, and mostly a ``content``. Members that are null
                are left out.
            tools: JSON objects that describe functions; none if there are none.
            add_generation_prompt: Whether the text ends with the beginning of an answer.
            continue_final_message: Whether the text ends within the last message, which the model
                goes on with; then no answer is begun.
            template_kwargs: Further variables for the template, such as ``enable_thinking``.

        Raises:
            InvalidRequest: ``messages_refused``, if the template refuses the messages, fails with
                them, or takes more time, memory or text than it may.
            Unavailable: too many chats are being rendered.
        """
        _check_depth([messages, tools or [], template_kwargs])
        chat = _chat(messages)
        continued = _mark_end(chat) if continue_final_message else None
        name = TOOL_USE if tools is not None and TOOL_USE in self._renderers else DEFAULT
        variables = {
            **self._special_tokens,
            **template_kwargs,
            "messages": chat,
            "tools": tools,
            "documents": template_kwargs.get("documents"),
            "add_generation_prompt": add_generation_prompt and not continue_final_message,
        }
        try:
            text = self._renderers[name].render(variables)
        except TemplateRefused as refused:
            raise _refused(
                f"the model's chat template refuses them: {_shortened(refused)}"
            ) from None
        return text if continued is None else _up_to_mark(text, continued)


def _templates(files: CheckpointFiles, config: Mapping[str, Any]) -> dict[str, str]:
    """By name. Files outweigh what the tokenizer's configuration has."""
    found = {name: files.text(file) for name, file in FILES.items()}
    templates = {name: text for name, text in found.items() if text is not None}
    if templates:
        return templates
    written = config.get("chat_template")
    if written is None:
        return {}
    if isinstance(written, str):
        return {DEFAULT: written}
    try:
        named = {each["name"]: each["template"] for each in written}
    except (TypeError, KeyError):
        named = {}
    if not named or not all(isinstance(text, str) for text in named.values()):
        raise UnsupportedModel(
            f"chat_template in {TOKENIZER_CONFIG} is neither a template nor a list of objects with "
            "a name and a template."
        )
    return named


def _special_tokens(files: CheckpointFiles, config: Mapping[str, Any]) -> dict[str, str]:
    written = dict(config)
    if "added_tokens_decoder" not in config:
        written |= files.json(SPECIAL_TOKENS_MAP) or {}
    tokens = {}
    for name in SPECIAL_TOKENS:
        token = written.get(name)
        content = token.get("content") if isinstance(token, dict) else token
        if isinstance(content, str):
            tokens[name] = content
    return tokens


def _chat(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The messages as a template sees them: without nulls, and with reasoning under the names that
    templates read."""
    if not messages:
        raise _refused("there are none.")
    chat = []
    for message in messages:
        known = {name: value for name, value in message.items() if value is not None}
        reasoning = next((known[name] for name in REASONING_FIELDS if name in known), None)
        if reasoning is not None:
            known = {"thinking": reasoning, **known, "reasoning_content": reasoning}
        chat.append(known)
    return chat


def _check_depth(values: Iterable[Any]) -> None:
    """Refuse what is nested deeper than a request's JSON may be. Python's encoder calls itself for
    what is nested, and beyond some depth it ends the process."""
    level = list(values)
    for _ in range(MAX_DEPTH):
        inner = (each.values() if isinstance(each, Mapping) else each for each in level)
        level = [each for members in inner for each in members if isinstance(each, dict | list)]
        if not level:
            return
    raise _refused(f"they are nested deeper than {MAX_DEPTH} levels.")


def _mark_end(chat: list[dict[str, Any]]) -> str:
    """Mark the end of the last message's last text; returns that text without the mark."""
    last = chat[-1]
    content = last.get("content")
    if isinstance(content, str):
        last["content"] = content + CONTINUED
        return content
    parts = list(content) if isinstance(content, list) else []
    for number, part in reversed(list(enumerate(parts))):
        text = part.get("text") if isinstance(part, dict) else None
        if isinstance(text, str):
            parts[number] = part | {"text": text + CONTINUED}
            last["content"] = parts
            return text
    raise _refused("the last one has no text to continue.")


def _up_to_mark(text: str, continued: str) -> str:
    end = text.rfind(CONTINUED.strip())
    if end < 0 or continued.strip() not in text:
        raise _refused("the model's chat template changes what is to be continued.")
    keeps_spaces = text.startswith(CONTINUED, end)
    return text[:end] if keeps_spaces else text[:end].rstrip()


def _refused(reason: str) -> InvalidRequest:
    return InvalidRequest(f"messages: {reason}", code="messages_refused")


def _shortened(refused: TemplateRefused) -> str:
    reason = str(refused)
    return reason if len(reason) <= MAX_REASON_CHARS else f"{reason[:MAX_REASON_CHARS]}..."
