"""Memory as the host has it, and as the groups of a container leave it."""

from pathlib import Path

import pytest

from node_runner.machine.main_memory import available_main_memory

GB = 10**9
HOST = 64 * GB
UNLIMITED = 9223372036854771712
"""What a group of cgroup v1 without a limit says."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path, "proc/meminfo", f"MemTotal: 1 kB\nMemAvailable: {HOST // 1024} kB\n")
    write(tmp_path, "proc/self/cgroup", "0::/\n")
    return tmp_path


def write(root: Path, name: str, content: object) -> None:
    file = root / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{content}")


def group_v2(root: Path, path: str, limit: object, used: int, inactive: int = 0) -> None:
    folder = f"sys/fs/cgroup/{path}"
    write(root, f"{folder}/memory.max", f"{limit}\n")
    write(root, f"{folder}/memory.current", f"{used}\n")
    write(root, f"{folder}/memory.stat", f"anon {used}\ninactive_file {inactive}\nfile 7\n")


def test_without_a_limit_the_host_counts(root: Path) -> None:
    assert available_main_memory(root) == HOST // 1024 * 1024
    group_v2(root, "", "max", 3 * GB)
    assert available_main_memory(root) == HOST // 1024 * 1024


def test_a_container_of_cgroup_v2(root: Path) -> None:
    group_v2(root, "", 8 * GB, 3 * GB, inactive=GB)
    assert available_main_memory(root) == 6 * GB


def test_the_narrowest_of_nested_groups_counts(root: Path) -> None:
    write(root, "proc/self/cgroup", "0::/user.slice/node.service\n")
    group_v2(root, "user.slice", 4 * GB, 3 * GB)
    group_v2(root, "user.slice/node.service", 16 * GB, GB)
    assert available_main_memory(root) == GB


def test_a_container_that_sees_the_hosts_path(root: Path) -> None:
    write(root, "proc/self/cgroup", "0::/docker/0123abcd/../..\n")
    group_v2(root, "", 8 * GB, 2 * GB)
    assert available_main_memory(root) == 6 * GB


def test_a_container_of_cgroup_v1(root: Path) -> None:
    write(root, "proc/self/cgroup", "5:cpu,cpuacct:/docker/a\n4:memory:/docker/a\n0::/docker/a\n")
    folder = "sys/fs/cgroup/memory"
    write(root, f"{folder}/docker/a/memory.limit_in_bytes", UNLIMITED)
    write(root, f"{folder}/docker/a/memory.usage_in_bytes", GB)
    assert available_main_memory(root) == HOST // 1024 * 1024
    write(root, f"{folder}/memory.limit_in_bytes", 2 * GB)
    write(root, f"{folder}/memory.usage_in_bytes", GB)
    write(root, f"{folder}/memory.stat", f"inactive_file 1\ntotal_inactive_file {GB // 2}\n")
    assert available_main_memory(root) == 3 * GB // 2


def test_a_group_that_is_full_leaves_nothing(root: Path) -> None:
    group_v2(root, "", GB, 2 * GB)
    assert available_main_memory(root) == 0


def test_what_is_not_linux_says_nothing(tmp_path: Path) -> None:
    assert available_main_memory(tmp_path) == 0
