"""A whole mesh of real processes, started once: API, two workers, three nodes, chain. It stops
after the last of its tests: whatever runs on takes time from other tests."""

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import httpx
import pytest
import redis
import torch
from eth_account import Account
from eth_account.signers.local import LocalAccount
from prometheus_client.parser import text_string_to_metric_families
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from market.money import to_units
from stack.demo import login
from stack.development_stack import DevelopmentStack
from stack.plan import SETTINGS, Plan
from stack.servers import free_port
from tests.conftest import DEMO_MODEL, MODEL_ID
from tests.support.folders import server_folder
from tests.support.gateway.chat_model import make_chat_model

PATIENCE = 60.0
LONG = 700
"""Tokens of a generation that is interrupted before its end."""

PRICE = Decimal("0.0001")
PROMPT_PRICE, CACHED_PRICE = PRICE / 10, PRICE / 100
"""FAR for each token."""

FAST = {
    **SETTINGS,
    "FAR_PAYMENTS__DEPOSIT_INTERVAL": "2",
    "FAR_DISCOVERY__HEALTH_CHECK_INTERVAL": "0.5",
    "FAR_DISCOVERY__NODE_TTL": "4",
    "FAR_DISCOVERY__ROW_INTERVAL": "2",
    "FAR_DISCOVERY__COOLDOWN": "2",
    "FAR_GENERATION__STALL": "2",
    "FAR_GENERATION__PING": "0.5",
    "FAR_GENERATION__MAX_START_WAIT": "600",
    "FAR_LIMITS__GENERATIONS_PER_WALLET": "100000/hour",
    "FAR_LIMITS__LOGINS_PER_IP": "100000/hour",
    "FAR_LIMITS__HEARTBEATS_PER_NODE": "100000/hour",
}
"""What takes half a minute in the world takes a few seconds here."""


def wait_until(condition: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
    """The condition's value, once it is true."""
    give_up = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > give_up:
            raise AssertionError(f"Waited {seconds:.0f} s in vain for: {what}")
        time.sleep(0.05)


@pytest.fixture(scope="package")
def stack() -> Iterator[DevelopmentStack]:
    with server_folder("far-e2e-") as folder:
        plan = Plan(
            folder=folder / "data",
            model=str(make_chat_model(folder / "model")),
            api_port=free_port(),
            redis_port=free_port(),
            chain_port=free_port(),
            workers=2,
            environment=FAST,
        )
        with DevelopmentStack(plan) as running:
            yield running


@pytest.fixture
def redis_client(stack: DevelopmentStack) -> Iterator[redis.Redis]:
    client = redis.Redis(port=stack.plan.redis_port)
    yield client
    client.close()


@dataclass
class User:
    """Somebody with a wallet and money in the escrow."""

    account: LocalAccount
    http: httpx.Client

    def body(self, prompt: str, **changes: Any) -> dict[str, Any]:
        greedy = {"model_id": MODEL_ID, "prompt": prompt, "max_tokens": 64, "temperature": 0.0}
        return greedy | changes

    def generate(self, prompt: str, **changes: Any) -> dict[str, Any]:
        """The JSON answer."""
        answer = self.http.post(
            "/api/inference/distributed/generate", json=self.body(prompt, **changes)
        )
        found: dict[str, Any] = answer.raise_for_status().json()
        return found

    def submit(self, prompt: str, **changes: Any) -> str:
        """An asynchronous job's request id."""
        answer = self.http.post(
            "/api/inference/distributed/generate",
            json=self.body(prompt, **changes),
            headers={"Prefer": "respond-async"},
        )
        assert answer.status_code == httpx.codes.ACCEPTED, answer.text
        request_id: str = answer.json()["request_id"]
        return request_id

    def job(self, request_id: str) -> dict[str, Any]:
        found: dict[str, Any] = (
            self.http.get(f"/api/inference/jobs/{request_id}").raise_for_status().json()
        )
        return found

    def ended(self, request_id: str, seconds: float = PATIENCE) -> dict[str, Any]:
        """The job, once it has ended."""

        def look() -> dict[str, Any] | None:
            job = self.job(request_id)
            return job if job["status"] in ("completed", "failed") else None

        found: dict[str, Any] = wait_until(look, f"the end of {request_id}", seconds)
        return found

    def events(
        self, request_id: str, *, after: str | None = None, stop_after: int | None = None
    ) -> list[tuple[str, dict[str, Any]]]:
        """Id and data of a job's events; hangs up after so many."""
        headers = {} if after is None else {"Last-Event-ID": after}
        path = f"/api/inference/jobs/{request_id}/events"
        found: list[tuple[str, dict[str, Any]]] = []
        with self.http.stream("GET", path, headers=headers) as answer:
            if answer.status_code == httpx.codes.NO_CONTENT:  # there is nothing after the last one
                return []
            assert answer.status_code == httpx.codes.OK, answer.read()
            event_id = ""
            for line in answer.iter_lines():
                if line.startswith("id: "):
                    event_id = line.removeprefix("id: ")
                elif line.startswith("data: "):
                    found.append((event_id, json.loads(line.removeprefix("data: "))))
                    if len(found) == stop_after:
                        break
        return found


@pytest.fixture
def make_user(stack: DevelopmentStack) -> Iterator[Callable[..., User]]:
    """Makes users whose deposit has been credited."""
    clients = []

    def make(far: str = "1") -> User:
        account: LocalAccount = Account.create()
        units = to_units(Decimal(far))
        stack.chain.give(stack.deployment, account.address, units)
        stack.chain.deposit(stack.deployment, account, units)
        http = httpx.Client(base_url=stack.plan.api_url, timeout=PATIENCE)
        clients.append(http)
        login(http, account)
        wait_until(lambda: balance(stack, account, "available"), "the deposit's credit")
        # The cap is raised after the deposit, maybe in a later block.
        signed = f"SELECT signed FROM spending_caps WHERE wallet = '{account.address.lower()}'"
        wait_until(lambda: query(stack, signed) not in ([], ["0.000000000000000000"]), "the cap")
        return User(account, http)

    yield make
    for client in clients:
        client.close()


@pytest.fixture
def user(make_user: Callable[..., User]) -> User:
    return make_user()


def balance(stack: DevelopmentStack, account: LocalAccount, kind: str) -> Decimal:
    """An account's balance, straight from the ledger."""
    found = query(
        stack,
        f"SELECT balance FROM ledger_balances WHERE owner = '{account.address.lower()}' "
        f"AND kind = '{kind}'",
    )
    return Decimal(found[0]) if found else Decimal(0)


def cost_of(job: dict[str, Any]) -> Decimal:
    """What a job costs that delivered a token: its tokens, and its prompt once."""
    cached = job["cached_prompt_tokens"]
    prompt = PROMPT_PRICE * (job["prompt_tokens"] - cached) + CACHED_PRICE * cached
    return PRICE * job["tokens_generated"] + prompt


def query(stack: DevelopmentStack, statement: str) -> list[str]:
    """Rows of one column, as text."""
    return stack.postgres.rows(statement, database="far_mesh")


def measured(stack: DevelopmentStack, node: str, name: str) -> float:
    """What a node says of itself in a metric without labels."""
    text = httpx.get(f"http://127.0.0.1:{stack.metrics_ports[node]}/metrics").text
    (value,) = [
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    ]
    return value


def kv_used(stack: DevelopmentStack) -> float:
    """Bytes that generations hold on all nodes together."""
    return sum(
        measured(stack, name, "far_node_kv_used_bytes")
        for name in stack.processes.children
        if name.startswith("node-")
    )


class Reference:
    """What transformers' own `generate` gives for a prompt."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self._model = AutoModelForCausalLM.from_pretrained(DEMO_MODEL, dtype=torch.float32)
        self.tokenizer = Tokenizer.from_file(str(DEMO_MODEL / "tokenizer.json"))
        self._texts: dict[tuple[str, int], str] = {}

    def text(self, prompt: str, tokens: int = 64) -> str:
        key = (prompt, tokens)
        if key not in self._texts:
            ids = self.tokenizer.encode(prompt).ids
            output = self._model.generate(
                torch.tensor([ids]), max_new_tokens=tokens, do_sample=False
            )
            self._texts[key] = self.tokenizer.decode(output[0, len(ids) :].tolist())
        return self._texts[key]

    def logprobs(self, prompt: str, tokens: int) -> list[float]:
        """Log-probabilities of the tokens that are chosen greedily."""
        ids = self.tokenizer.encode(prompt).ids
        output = self._model.generate(
            torch.tensor([ids]),
            max_new_tokens=tokens,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        chosen = output.sequences[0, len(ids) :]
        logits = torch.stack(output.logits)[:, 0].log_softmax(-1)
        found: list[float] = logits.gather(1, chosen[:, None])[:, 0].tolist()
        return found


@pytest.fixture(scope="package")
def reference() -> Reference:
    return Reference()


def at_once(count: int, work: Callable[[int], Any]) -> list[Any]:
    """Run the work so many times at the same time."""
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(work, range(count)))


def tokens_so_far(user: User, request_id: str) -> int:
    generated: int = user.job(request_id)["tokens_generated"]
    return generated


def worker_lines(stack: DevelopmentStack, event: str, request_id: str) -> list[str]:
    """What the workers' logs say of such an event of a generation."""
    logs = [child.log for name, child in stack.processes.children.items() if "worker" in name]
    lines = [line for log in logs for line in log.read_text().splitlines()]
    return [line for line in lines if event in line and request_id in line]
