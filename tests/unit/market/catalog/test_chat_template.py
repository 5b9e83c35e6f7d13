"""Where a checkpoint's chat template and special tokens are read, and what is refused with them."""

import json
from pathlib import Path
from typing import Any

import pytest

from market.catalog.chat_template import MAX_REASON_CHARS, ChatTemplate
from market.catalog.checkpoint_files import CheckpointFiles
from market.errors import InvalidRequest
from mesh.errors import UnsupportedModel
from tests.support.chat.conversations import user

HELLO = [user("Hello")]


def loaded(folder: Path, config: dict[str, Any] | None = None, **files: str) -> ChatTemplate | None:
    """``files``: templates by name, that of the default under ``default``."""
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    for name, text in files.items():
        path = folder / "additional_chat_templates" / f"{name}.jinja"
        path = folder / "chat_template.jinja" if name == "default" else path
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return ChatTemplate.load(CheckpointFiles(str(folder)))


def rendered(template: ChatTemplate | None, **options: Any) -> str:
    assert template is not None
    return template.render(HELLO, **options)


def test_a_checkpoint_without_template_has_none(tmp_path: Path) -> None:
    assert loaded(tmp_path) is None
    assert loaded(tmp_path, {"bos_token": "<s>"}) is None
    assert loaded(tmp_path, {"chat_template": None}) is None


def test_files_outweigh_the_configuration(tmp_path: Path) -> None:
    template = loaded(tmp_path, {"chat_template": "config"}, default="file")
    assert rendered(template) == "file"


@pytest.mark.parametrize("form", ["list", "files"])
def test_requests_with_tools_have_a_template_of_their_own(form: str, tmp_path: Path) -> None:
    named = {"default": "plain", "tool_use": "tools", "rag": "documents"}
    if form == "list":
        written = [{"name": name, "template": text} for name, text in named.items()]
        template = loaded(tmp_path, {"chat_template": written})
    else:
        template = loaded(tmp_path, **named)
    assert rendered(template) == "plain"
    assert rendered(template, tools=[]) == "tools"


def test_special_tokens_are_read_where_transformers_reads_them(tmp_path: Path) -> None:
    shown = "{{ bos_token }} {{ eos_token }} {{ unk_token }} {{ pad_token is defined }}"
    older = {"bos_token": {"content": "<old>", "lstrip": False}, "unk_token": "<unk>"}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(older))
    config: dict[str, Any] = {
        "bos_token": "<s>",
        "eos_token": {"__type": "AddedToken", "content": "</s>"},
        "pad_token": None,
    }
    assert rendered(loaded(tmp_path, config, default=shown)) == "<old> </s> <unk> False"
    config["added_tokens_decoder"] = {}  # the newer form, in which all are in one file
    assert rendered(loaded(tmp_path, config, default=shown)) == "<s> </s>  False"


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ("{% for a in b %}", "'default' does not compile: Unexpected end of template"),
        ("{{ a | unheard_of }}", "No filter named 'unheard_of'"),
        ("{% include 'a' %}{% endfor %}", "does not compile"),
        ("{{ " + "(" * 10_000 + "1" + ")" * 10_000 + " }}", "does not compile"),
        ({"default": "a"}, "neither a template nor a list"),
        ([{"name": "default"}], "neither a template nor a list"),
        ([{"name": "default", "template": 1}], "neither a template nor a list"),
        ([], "neither a template nor a list"),
        (7, "neither a template nor a list"),
        ([{"name": "rag", "template": "a"}], "none that is named default"),
    ],
)
def test_a_checkpoint_whose_template_cannot_be_used_is_refused(
    written: object, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedModel, match=reason):
        loaded(tmp_path, {"chat_template": written})


def test_what_the_template_says_reaches_the_user(tmp_path: Path) -> None:
    template = loaded(tmp_path, default="{{ raise_exception('Roles must ' ~ 'alternate.') }}")
    with pytest.raises(InvalidRequest, match="refuses them: Roles must alternate") as refused:
        rendered(template)
    assert refused.value.code == "messages_refused"


def test_but_no_more_than_a_sentence(tmp_path: Path) -> None:
    template = loaded(tmp_path, default="{{ raise_exception('no ' * 1000) }}")
    with pytest.raises(InvalidRequest) as refused:
        rendered(template)
    assert len(refused.value.detail) < MAX_REASON_CHARS + 100


def test_variables_of_a_request_outweigh_special_tokens_but_not_the_chat(tmp_path: Path) -> None:
    template = loaded(
        tmp_path,
        {"bos_token": "<s>"},
        default="{{ bos_token }}{{ messages[0].content }}{{ documents }}",
    )
    assert rendered(template, bos_token="<b>", documents=[1]) == "<b>Hello[1]"
    assert rendered(template) == "<s>HelloNone"
