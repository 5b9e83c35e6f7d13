"""The processes of a stack."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stack.processes import Processes


def test_a_process_that_ctrl_c_meets_while_it_starts_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    popen = subprocess.Popen
    started: list[subprocess.Popen[bytes]] = []

    def interrupted(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        started.append(popen(*arguments, **options))
        signal.raise_signal(signal.SIGINT)
        return started[0]

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    processes = Processes(tmp_path)
    monkeypatch.setattr(subprocess, "Popen", interrupted)
    try:
        with pytest.raises(KeyboardInterrupt):
            processes.start("sleeper", [sys.executable, "-c", "import time; time.sleep(60)"], {})
    finally:
        signal.signal(signal.SIGINT, before)
        processes.stop(last=())
    assert started[0].poll() == -signal.SIGTERM
