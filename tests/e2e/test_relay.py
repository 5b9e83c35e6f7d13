"""A provider behind a router that lets nobody in: his node reaches the relay and nothing else."""

import subprocess
import sys
import time
from collections.abc import Iterator

import httpx
import pytest

from stack.development_stack import DevelopmentStack
from stack.processes import ManagedProcess
from stack.servers import free_port
from tests.e2e.conftest import LONG, Reference, User, tokens_so_far, wait_until, worker_lines
from tests.support.network.netns import Namespace, why_not

CUT = 5.0
"""Seconds."""

REASON = why_not()
pytestmark = pytest.mark.skipif(
    bool(REASON), reason=f"This machine makes no network namespaces: {REASON}."
)

TRY = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 2).close()"


@pytest.fixture(scope="module")
def home(stack: DevelopmentStack) -> Iterator[Namespace]:
    """Where the provider is: a replica of the gateway is at ``home.address``, ``home.port``."""
    with Namespace(free_port()) as made:
        stack.start_api("relay", host=made.address, port=made.port)
        wait_until(lambda: _answers(made.url), "the relay")
        yield made
        stack.processes.end("relay")


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz").is_success
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def provider(stack: DevelopmentStack, home: Namespace) -> Iterator[ManagedProcess]:
    """The middle layers' node, at home."""
    stack.processes.end("node-1")
    options = ["--redis", "", "--discovery", home.url]
    yield stack.start_node(1, (2, 4), options=options, prefix=home.command())
    stack.processes.end("node-1")
    stack.start_node(1, (2, 4))
    stack.wait_for_nodes(3)


def reaches(command: list[str], address: str, port: int) -> bool:
    asked = [*command, sys.executable, "-c", TRY, address, str(port)]
    return subprocess.run(asked, capture_output=True, check=False).returncode == 0


@pytest.mark.slow
def test_home_is_closed(home: Namespace) -> None:
    assert reaches(home.command(), home.address, home.port)
    other = subprocess.Popen(
        [sys.executable, "-m", "http.server", "--bind", home.address, str(port := free_port())],
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    inside = subprocess.Popen(
        home.command(sys.executable, "-m", "http.server", str(port)),
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: reaches([], home.address, port), "a server beside the relay")
        assert not reaches(home.command(), home.address, port)
        wait_until(lambda: reaches(home.command(), "127.0.0.1", port), "a server at home")
        assert not reaches([], home.inside, port)
    finally:
        for process in (other, inside):
            process.terminate()
            process.wait()


@pytest.mark.slow
def test_a_node_behind_a_router_serves(
    stack: DevelopmentStack, provider: ManagedProcess, user: User, reference: Reference
) -> None:
    stack.wait_for_nodes(3)
    prompt = "The lambda expression"
    answer = user.generate(prompt)
    assert answer["text"] == reference.text(prompt)
    assert '"connection": "websocket"' in provider.log.read_text()


@pytest.mark.slow
def test_a_cut_of_five_seconds_costs_no_token(
    stack: DevelopmentStack,
    home: Namespace,
    provider: ManagedProcess,
    user: User,
    reference: Reference,
) -> None:
    stack.wait_for_nodes(3)
    prompt = "The assert statement"
    request_id = user.submit(prompt, max_tokens=LONG)
    wait_until(lambda: tokens_so_far(user, request_id) > 3, "some tokens")
    home.cut()
    time.sleep(CUT)  # what is tested is this time
    before = tokens_so_far(user, request_id)
    home.mend()
    job = user.ended(request_id)
    assert before < LONG
    assert job["status"] == "completed"
    assert job["text"] == reference.text(prompt, LONG)
    ids = [event_id for event_id, _ in user.events(request_id)][:-1]
    assert ids == [str(number + 1) for number in range(job["tokens_generated"])]
    assert worker_lines(stack, "route_opened", request_id)
