"""A model on a hub is read with its chat template, of which nothing but small files comes.

The hub is a small server on loopback that answers as the real one does (there is none in reach of
a test machine).
"""

import os
import subprocess
import sys
from pathlib import Path

from tests.support.chat.checkpoints import demo_with_template
from tests.support.network.file_server import FileServer

REPOSITORY = "somebody/some-model"

CODE = f"""
from decimal import Decimal
from market.catalog.models import load_model
from market.settings.models import ModelSettings
model = load_model(ModelSettings(id={REPOSITORY!r}, payment_per_token=Decimal(1)))
messages = [{{"role": "user", "content": "Hello"}}]
print(repr(model.chat_template.render(messages)))
print(repr(model.chat_template.render(messages, tools=[])))
"""


def test_templates_are_read_from_a_hub(tmp_path: Path) -> None:
    repository = demo_with_template(tmp_path / "repository")
    (repository / "additional_chat_templates").mkdir()
    (repository / "additional_chat_templates" / "tool_use.jinja").write_text("tools")
    revisions = tmp_path / "hub" / REPOSITORY / "resolve"
    revisions.mkdir(parents=True)
    (revisions / "main").symlink_to(repository)
    (revisions / ("c" * 40)).symlink_to(repository)
    server = FileServer(tmp_path / "hub")
    # huggingface_hub reads its endpoint and cache from the environment when imported.
    hub = {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home")}
    hub |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_XET": "1"}
    try:
        ran = subprocess.run(
            [sys.executable, "-c", CODE],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | hub,
        )
    finally:
        server.close()
    assert ran.stdout.splitlines() == [
        repr("<|endoftext|>User: Hello\nAssistant:"),
        repr("tools"),
    ], ran.stderr
    assert not any("safetensors" in name for name in server.given)
