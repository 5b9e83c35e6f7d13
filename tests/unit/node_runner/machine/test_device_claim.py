"""A machine's name lasts; two processes are never one device."""

import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from node_runner.machine import directories
from node_runner.machine.device_claim import DEVICE_ID, ClaimError, DeviceClaim, claim

WALLET = "0x" + "Ab" * 20


def claimed(folder: Path, wallet: str = WALLET, gpu_index: int = 0) -> DeviceClaim:
    return claim(folder, wallet=wallet, gpu_index=gpu_index)


def test_a_device_is_the_same_after_a_restart(tmp_path: Path) -> None:
    first = claimed(tmp_path / "state")
    first.release()
    again = claimed(tmp_path / "state", WALLET.lower())
    again.release()
    assert again.device_id == first.device_id
    assert DEVICE_ID.fullmatch(first.device_id)
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700


def test_a_second_process_beside_the_first_is_a_device_of_its_own(tmp_path: Path) -> None:
    first, second = claimed(tmp_path), claimed(tmp_path)
    assert second.device_id == f"{first.device_id}.1"
    first.release()
    third = claimed(tmp_path)
    assert third.device_id == first.device_id
    for device in (second, third):
        device.release()


def test_gpus_and_wallets_do_not_stand_in_each_others_way(tmp_path: Path) -> None:
    devices = [
        claimed(tmp_path),
        claimed(tmp_path, gpu_index=1),
        claimed(tmp_path, wallet="0x" + "cd" * 20),
    ]
    assert len({device.device_id for device in devices}) == 1
    assert [device.gpu_index for device in devices] == [0, 1, 0]
    for device in devices:
        device.release()


def test_a_process_that_was_killed_lets_go(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path\n"
        "from node_runner.machine.device_claim import claim\n"
        "device = claim(Path(sys.argv[1]), wallet=sys.argv[2], gpu_index=0)\n"
        "print(device.device_id, flush=True); os.kill(os.getpid(), 9)"
    )
    command = [sys.executable, "-c", code, str(tmp_path), WALLET]
    killed = subprocess.run(command, capture_output=True, text=True, check=False)
    device = claimed(tmp_path)
    device.release()
    assert killed.returncode == -9
    assert device.device_id == killed.stdout.strip()


def test_processes_that_start_at_once_agree_on_the_machines_name(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        devices = list(threads.map(lambda gpu: claimed(tmp_path, gpu_index=gpu), range(8)))
    for device in devices:
        device.release()
    assert len({device.device_id for device in devices}) == 1
    assert not list(tmp_path.glob("device_id.*"))


def test_a_file_that_holds_something_else(tmp_path: Path) -> None:
    (tmp_path / "device_id").write_text("mine")
    with pytest.raises(ClaimError, match="Delete it"):
        claimed(tmp_path)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ClaimError, match="Cannot write"):
        claimed(tmp_path / "file")


def test_the_state_folder_can_be_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FAR_NODE_STATE", str(tmp_path))
    assert directories.state() == tmp_path
