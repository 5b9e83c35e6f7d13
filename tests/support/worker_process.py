"""A worker as a process of its own, on a test's servers."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from market.settings import Settings

START_LIMIT = 60.0


@contextmanager
def worker_process(settings: Settings, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`python -m workers` with these settings, once it has said that it works; it is terminated at
    the end. What it says is in ``log``."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "workers"],
            env={**os.environ, "FAR_CONFIG": os.devnull, **_environment(settings)},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            give_up = time.monotonic() + START_LIMIT
            while b"worker_ready" not in log.read_bytes():
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < give_up, log.read_text()
                time.sleep(0.05)
            yield process
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _environment(settings: Settings) -> dict[str, str]:
    [model] = settings.models
    return {
        "FAR_DATABASE_URL": settings.database_url,
        "FAR_REDIS_URL": settings.redis_url,
        "FAR_AUTH__JWT_SECRET": settings.auth.jwt_secret.get_secret_value(),
        "FAR_GENERATION__PROMPT_KEY": settings.generation.prompt_key.get_secret_value(),
        "FAR_MODELS": json.dumps(
            [
                {
                    "id": model.id,
                    "path": str(model.path),
                    "payment_per_token": str(model.payment_per_token),
                }
            ]
        ),
    }
