"""The demo model with a chat template, as a checkpoint of its own."""

import shutil
from pathlib import Path

from tests.conftest import DEMO_MODEL

TEMPLATE = """\
{{ bos_token }}
{%- for tool in tools or [] -%}
{{ '[tool] ' + (tool | tojson) + '\\n' }}
{%- endfor -%}
{%- for message in messages -%}
{{ '[' + message.role + '] ' + message.content }}
{%- for call in message.tool_calls or [] -%}
{{ '<tool_call>\\n' + (call.function | tojson) + '\\n</tool_call>' }}
{%- endfor -%}
{{ '\\n' }}
{%- endfor -%}
{{ '[assistant] ' if add_generation_prompt }}"""
"""The model was trained on no special tokens but the first; its calls are in Hermes' form."""


def make_chat_model(folder: Path) -> Path:
    """A copy of the demo model in a new folder, with :data:`TEMPLATE`."""
    shutil.copytree(DEMO_MODEL, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder
