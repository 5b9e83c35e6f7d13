"""How a model writes calls is read of its chat template."""

import pytest
from tokenizers import AddedToken

from market.catalog.tool_call_style import Marker, ToolCallForm, tool_call_style
from tests.support.engine.tokenizers import byte_level


@pytest.mark.parametrize(
    ("template", "form"),
    [
        ("{% if tools %}<tool_call>{% endif %}", ToolCallForm.HERMES),
        ("{% if tools %}[TOOL_CALLS]{% endif %}", ToolCallForm.MISTRAL),
        ("{% if tools %}<|python_tag|>{% endif %}", ToolCallForm.LLAMA),
        (
            "{% if tools %}"
            'Respond in the format {"name": function name, "parameters": dictionary of argument '
            "name and its value}.{% endif %}",
            ToolCallForm.LLAMA,
        ),
    ],
)
def test_a_template_shows_the_form(template: str, form: ToolCallForm) -> None:
    style = tool_call_style(template, byte_level())
    assert style is not None
    assert style.form is form


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages }}",
        "<tool_call>",  # takes no tools
        "{% if tools %}{{ tools }}{% endif %}",
        "{% if tools %}<tool_call><function=name>{% endif %}",
        "{% if tools %}<tool_call>name<arg_key>{% endif %}",
        "{% if tools %}[TOOL_CALLS]name[ARGS]{% endif %}",
    ],
)
def test_other_templates_show_none(template: str) -> None:
    assert tool_call_style(template, byte_level()) is None


def test_markers_may_be_tokens() -> None:
    tokenizer = byte_level()
    tokenizer.add_tokens([AddedToken("<tool_call>", special=False, normalized=False)])
    style = tool_call_style("tools <tool_call>", tokenizer)
    assert style is not None
    assert style.opening == Marker("<tool_call>", tokenizer.token_to_id("<tool_call>"))
    assert style.closing == Marker("</tool_call>", None)
