"""Checkpoints to chat with."""

import shutil
from pathlib import Path

from tests.conftest import DEMO_MODEL
from tests.support.chat.styles import TEMPLATES


def demo_with_template(folder: Path, template: str = "plain") -> Path:
    """The demo model with a chat template: what it answers means little, but it answers.

    Args:
        template: The name of a file in `tests/support/chat/templates`, without its suffix.
    """
    shutil.copytree(DEMO_MODEL, folder)
    shutil.copy(TEMPLATES / f"{template}.jinja", folder / "chat_template.jinja")
    return folder
