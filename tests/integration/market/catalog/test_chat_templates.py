"""Chats are rendered as transformers' `apply_chat_template` renders them: texts and tokens."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from market.catalog.chat_template import ChatTemplate
from market.catalog.checkpoint_files import CheckpointFiles
from market.errors import InvalidRequest
from mesh.model.tokenizer import load_tokenizer
from tests.support.chat.conversations import CONVERSATIONS, SYSTEM, assistant, user
from tests.support.chat.styles import STYLES, Style

WITH_BOS = [style for style in STYLES if style.bos and style.name not in ("phi", "zephyr")]
"""Styles whose templates begin with the token that begins a text, but for Hermes' default."""


class Both:
    """A style's checkpoint, read by us and by transformers."""

    def __init__(self, folder: Path) -> None:
        template = ChatTemplate.load(CheckpointFiles(str(folder)))
        assert template is not None
        self.template = template
        self.tokenizer = load_tokenizer(folder / "tokenizer.json")
        self.reference: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)

    def ids(self, text: str) -> list[int]:
        """As prompts that are rendered have to be encoded."""
        [encoded] = self.tokenizer.encode_batch_fast([text], add_special_tokens=False)
        found: list[int] = encoded.ids
        return found


@pytest.fixture(scope="module", params=STYLES, ids=lambda style: style.name)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Both:
    style: Style = request.param
    return Both(style.save(tmp_path_factory.mktemp(style.name)))


@pytest.mark.parametrize("begins_answer", [True, False], ids=["answer begun", "no answer"])
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_texts_and_tokens_are_those_of_transformers(
    both: Both, name: str, begins_answer: bool
) -> None:
    chat = CONVERSATIONS[name]
    options = {"tools": chat.tools, "add_generation_prompt": begins_answer, **chat.variables}
    ours = _outcome(lambda: both.template.render(chat.messages, **options))
    reference = both.reference
    expected = _outcome(
        lambda: reference.apply_chat_template(chat.messages, tokenize=False, **options)
    )
    assert ours == expected
    if isinstance(ours, str):
        tokens = reference.apply_chat_template(chat.messages, return_dict=False, **options)
        assert both.ids(ours) == tokens


@pytest.mark.parametrize("style", WITH_BOS, ids=lambda style: style.name)
def test_a_prompt_begins_with_one_token_that_begins_a_text(style: Style, tmp_path: Path) -> None:
    both = Both(style.save(tmp_path))
    begin = both.tokenizer.token_to_id(style.bos or "")
    tools = CONVERSATIONS["tools"].tools if "tool_use" in style.templates else None
    text = both.template.render([user("Hello")], tools=tools)
    assert [token == begin for token in both.ids(text)].count(True) == 1
    assert both.ids(text)[0] == begin
    assert both.tokenizer.encode(text).ids[:2] == [begin, begin]  # with those that it adds itself


@pytest.mark.parametrize(
    "messages",
    [
        [SYSTEM, user("Count"), assistant("1, 2, ")],
        [user("Count"), assistant("1, 2,")],
        [user("Count"), assistant("  1\n\n")],
        [user("Count"), assistant([{"type": "text", "text": "1, "}])],
        [user("Count"), assistant([{"type": "image"}])],
        [user("Count"), assistant(None)],
        [user("Count"), assistant("<think>so</think>1, ")],
        [user("CONTINUE_FINAL_MESSAGE_TAG "), assistant("1, ")],
    ],
)
def test_the_last_message_is_continued_as_by_transformers(
    both: Both, messages: list[dict[str, Any]]
) -> None:
    ours = _outcome(lambda: both.template.render(messages, continue_final_message=True), vague=True)
    reference = both.reference
    expected = _outcome(
        lambda: reference.apply_chat_template(
            messages, tokenize=False, continue_final_message=True
        ),
        vague=True,
    )
    assert ours == expected


def test_no_chat_is_none(both: Both) -> None:
    with pytest.raises(InvalidRequest, match="there are none") as refused:
        both.template.render([])
    assert refused.value.code == "messages_refused"


def _outcome(render: Callable[[], Any], *, vague: bool = False) -> str | tuple[str, ...]:
    """A text, or the reason why there is none, without what we write before it.

    Args:
        vague: Leave out the reason.
    """
    try:
        text: str = render()
    except InvalidRequest as refused:
        reason = refused.detail.removeprefix("messages: the model's chat template refuses them: ")
        return (refused.code, "" if vague else reason)
    except Exception as error:  # transformers raises what the template does
        return ("messages_refused", "" if vague else str(error))
    return text
