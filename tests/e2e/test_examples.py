"""The examples of docs/start.md, as they are written there."""

import subprocess
import sys
from pathlib import Path

import httpx

from stack.development_stack import DevelopmentStack
from tests.conftest import MODEL_ID

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


def test_whoever_has_logged_in_is_served_at_once(stack: DevelopmentStack) -> None:
    plan = stack.plan
    command = [sys.executable, str(EXAMPLES / "login.py"), "--api", plan.api_url]
    command += ["--rpc", plan.rpc_url, "--contracts", str(plan.folder / "contracts.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    answer = httpx.post(
        f"{plan.api_url}/api/inference/distributed/generate",
        headers={"Authorization": f"Bearer {done.stdout.strip()}"},
        json={"model_id": MODEL_ID, "prompt": "The for statement", "max_tokens": 5},
        timeout=60,
    )
    assert answer.status_code == httpx.codes.OK, answer.text
    assert answer.json()["tokens_generated"] == 5
