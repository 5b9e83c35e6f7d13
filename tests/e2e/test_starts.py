"""Each process of the mesh, started twenty times, four at once, on a mesh that works: it is ready,
or says why not."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx
import pytest

from stack.development_stack import DevelopmentStack
from stack.processes import ManagedProcess
from stack.servers import api_command, free_port
from tests.e2e.conftest import User, wait_until

AT_ONCE, ROUNDS = 4, 5
PATIENCE = 120.0

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]


def api(stack: DevelopmentStack, name: str) -> tuple[ManagedProcess, Callable[[], bool]]:
    port = free_port()
    return stack.start_api(name, port=port), lambda: answers(port)


def discovery_api(stack: DevelopmentStack, name: str) -> tuple[ManagedProcess, Callable[[], bool]]:
    port = free_port()
    command = api_command("api.discovery_app:create_app", port)
    environment = stack.processes.children["api"].environment
    return stack.processes.start_python(name, command, environment), lambda: answers(port)


def dht_peer(stack: DevelopmentStack, name: str) -> tuple[ManagedProcess, Callable[[], bool]]:
    environment = {
        **stack.processes.children["api"].environment,
        "FAR_REDIS_URL": stack.plan.redis_url.removesuffix("0") + "1",  # no node is told of it
        "FAR_DISCOVERY__DHT_OPERATOR_KEY": "77" * 32,
        "FAR_DISCOVERY__DHT_PORT": str(free_port()),
        "FAR_DISCOVERY__DHT_IDENTITY": str(stack.plan.folder / f"{name}.key"),
    }
    child = stack.processes.start_python(name, ["-m", "discovery"], environment)
    return child, lambda: "dht_started" in child.log.read_text()


def node(stack: DevelopmentStack, name: str) -> tuple[ManagedProcess, Callable[[], bool]]:
    child = stack.start_node(1, (2, 4), name=name)
    return child, lambda: "node_started" in child.log.read_text()


def answers(port: int) -> bool:
    """Whether a gateway says that it is ready."""
    try:
        return httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=10).status_code == 200
    except httpx.TransportError:
        return False


def wait_for_start(child: ManagedProcess, is_ready: Callable[[], bool]) -> None:
    def ready_or_over() -> bool:
        return child.process.poll() is not None or is_ready()

    wait_until(ready_or_over, f"{child.name}\n{child.tail()}", PATIENCE)
    assert child.process.poll() is None, child.tail()


@contextmanager
def load(user: User) -> Iterator[None]:
    """Generations, one after the other, four at a time; each of them completes."""
    over = threading.Event()
    failed: list[dict[str, object]] = []

    def generate(lane: int) -> None:
        number = 0
        while not over.is_set():
            number += 1
            request_id = user.submit(f"Lane {lane}, number {number}", max_tokens=16)
            job = user.ended(request_id, PATIENCE)
            if job["status"] != "completed":
                failed.append(job)

    lanes = [threading.Thread(target=generate, args=(lane,)) for lane in range(4)]
    for lane in lanes:
        lane.start()
    try:
        yield
    finally:
        over.set()
        for lane in lanes:
            lane.join()
    assert not failed, failed


@pytest.mark.parametrize("start", [api, discovery_api, dht_peer, node], ids=lambda f: f.__name__)
def test_a_process_that_starts_under_load_is_ready(
    stack: DevelopmentStack,
    make_user: Callable[..., User],
    start: Callable[[DevelopmentStack, str], tuple[ManagedProcess, Callable[[], bool]]],
) -> None:
    with load(make_user(far="100")):
        for turn in range(ROUNDS):
            names = [f"another-{start.__name__}-{turn}-{index}" for index in range(AT_ONCE)]
            try:
                for child, is_ready in [start(stack, name) for name in names]:
                    wait_for_start(child, is_ready)
            finally:
                for name in stack.processes.children.keys() & set(names):
                    stack.processes.end(name)
    stack.wait_for_nodes(3)


def test_workers_that_start_while_jobs_wait_take_them(stack: DevelopmentStack, user: User) -> None:
    """Nobody works until the jobs are there; then all begin at once."""
    for index in range(stack.plan.workers):
        stack.processes.end(f"worker-{index}")
    try:
        for turn in range(ROUNDS):
            request_ids = [
                user.submit(f"Turn {turn}, number {number}", max_tokens=8) for number in range(10)
            ]
            workers = [stack.start_worker(turn * AT_ONCE + each + 10) for each in range(AT_ONCE)]
            for worker in workers:
                wait_for_start(
                    worker, lambda worker=worker: "worker_ready" in worker.log.read_text()
                )
            for request_id in request_ids:
                assert user.ended(request_id, PATIENCE)["status"] == "completed"
            for worker in workers:
                assert worker.process.poll() is None, worker.tail()
                worker.process.send_signal(signal.SIGTERM)
            for worker in workers:
                assert worker.process.wait(30) == 0, worker.tail()
                del stack.processes.children[worker.name]
    finally:
        for index in range(stack.plan.workers):
            stack.start_worker(index)
