"""Receipts with proofs, and usage and earnings as CSV."""

import csv
import io
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import pytest
from eth_account.signers.local import LocalAccount
from hexbytes import HexBytes
from sqlalchemy import text, update
from web3 import Web3

from market.escrow.artifacts import artifact
from market.escrow.reader import EscrowReader
from market.jobs.tables import Job, NodeContribution
from market.money import to_units
from market.receipts import statements
from market.resources import Resources
from market.settlement import usage_tree
from market.settlement.usage_tree import UsageLine
from tests.conftest import MODEL_ID, Chain
from tests.support.chain.settled_money import PROVIDERS, SIGNER, rich_user, served
from tests.support.gateway.api import OTHER_WALLET, PROVIDER_WALLET, Gateway, open_gateway, problem
from tests.support.some_slow import some_slow
from workers.settlement import settle_due

USAGE, EARNINGS = "/api/billing/usage.csv", "/api/provider/earnings.csv"


async def receipt_of(gateway: Gateway, request_id: str, wallet: str | None = None) -> Any:
    headers = {} if wallet is None else gateway.login(wallet)
    answer = await gateway.client.get(f"/api/inference/jobs/{request_id}/receipt", headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def statement(gateway: Gateway, url: str, wallet: str | None = None) -> list[dict[str, str]]:
    headers = {} if wallet is None else gateway.login(wallet)
    answer = await gateway.client.get(url, headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    return list(csv.DictReader(io.StringIO(answer.text)))


async def test_a_receipt_says_what_was_paid_to_whom(gateway: Gateway) -> None:
    job = await gateway.submit()
    await job.write("one", " two")
    await job.complete()
    receipt = await receipt_of(gateway, job.id)
    assert receipt["status"] == "captured"
    assert receipt["batch"] is None
    assert receipt["tokens_generated"] == 2
    assert (receipt["prompt_tokens"], receipt["cached_prompt_tokens"]) == (12, 0)
    assert receipt["price_per_token_far_exact"] == "0.0001"
    assert receipt["price_per_prompt_token_far_exact"] == "0.00001"
    assert receipt["price_per_cached_prompt_token_far_exact"] == "0.000001"
    assert (receipt["cost_far_exact"], receipt["prompt_cost_far_exact"]) == ("0.00032", "0.00012")
    assert [part["layers"] for part in receipt["served"]] == [[0, 1], [2, 3], [4, 5]]
    assert all(part["tokens_contributed"] == 2 for part in receipt["served"])
    parts = [Decimal(part["payment_far_exact"]) for part in receipt["served"]]
    assert sum(parts) + Decimal(receipt["platform_fee_far_exact"]) == Decimal("0.00032")
    assert all(part["prompt_tokens_contributed"] == 12 for part in receipt["served"])


async def test_a_job_that_runs_has_no_receipt_yet(gateway: Gateway) -> None:
    job = await gateway.submit()
    await job.write("one")
    answer = await gateway.client.get(job.url + "/receipt")
    problem(answer, 409, "receipt_not_ready")
    assert answer.headers["retry-after"] == "5"


async def test_a_job_that_failed_before_its_first_token_was_free(gateway: Gateway) -> None:
    job = await gateway.submit()
    await job.fail()
    receipt = await receipt_of(gateway, job.id)
    assert (receipt["status"], receipt["cost_far_exact"]) == ("free", "0")
    assert receipt["served"] == []


async def test_a_job_that_failed_later_has_a_receipt_as_any_other(gateway: Gateway) -> None:
    job = await gateway.submit()
    await job.write("one", " two")
    await job.fail()
    receipt = await receipt_of(gateway, job.id)
    assert (receipt["status"], receipt["cost_far_exact"]) == ("captured", "0.00032")
    assert [part["tokens_contributed"] for part in receipt["served"]] == [2, 2, 2]


async def test_strangers_see_no_receipt(gateway: Gateway) -> None:
    job = await gateway.submit()
    await job.write("one")
    await job.complete()
    stranger = gateway.login(OTHER_WALLET)
    for request_id in (job.id, "req_unknown", "req%00"):
        url = f"/api/inference/jobs/{request_id}/receipt"
        problem(await gateway.client.get(url, headers=stranger), 404, "job_not_found")
    anonymous = await gateway.client.get(job.url + "/receipt", headers={"Authorization": ""})
    problem(anonymous, 401, "token_missing")


async def test_a_provider_sees_his_part_alone(gateway: Gateway) -> None:
    job = await gateway.submit()
    await job.write("one")
    await job.complete()
    async with gateway.sessions.begin() as db:
        await db.execute(
            update(NodeContribution)
            .where(NodeContribution.node_id == "node_1")
            .values(wallet_address=OTHER_WALLET)
        )
    receipt = await receipt_of(gateway, job.id, OTHER_WALLET)
    assert [part["node_id"] for part in receipt["served"]] == ["node_1"]
    hidden = ("cost_far", "cost_far_exact", "prompt_cost_far_exact", "platform_fee_far_exact")
    assert [receipt[field] for field in hidden] == [None] * 4


@pytest.fixture
async def settled(chain_resources: Resources) -> AsyncIterator[Gateway]:
    """The gateway beside a chain on which batches are settled."""
    async with open_gateway(chain_resources.settings) as opened:
        yield opened


async def settled_job(
    resources: Resources, escrow: EscrowReader, chain: Chain
) -> tuple[LocalAccount, Job]:
    """One of three that were settled together."""
    user, other = await rich_user(resources, chain), await rich_user(resources, chain)
    job = await served(resources, user, 7)
    await served(resources, other, 5)
    await served(resources, user, 1)
    assert await settle_due(resources, escrow, SIGNER) is not None
    return user, job


async def test_the_contract_agrees_with_a_receipt(
    chain_resources: Resources, escrow: EscrowReader, chain: Chain, settled: Gateway
) -> None:
    user, job = await settled_job(chain_resources, escrow, chain)
    receipt = await receipt_of(settled, job.request_id, user.address.lower())
    assert receipt["status"] == "settled"
    batch = receipt["batch"]
    lines = batch["lines"]
    assert sum(int(line["amount"]) for line in lines) == to_units(Decimal("0.0007"))
    assert len(lines) == len(PROVIDERS) + 1, "the fee is one, too"
    contract = chain.actor.web3.eth.contract(
        address=Web3.to_checksum_address(batch["contract"]), abi=artifact("InferenceEscrow")["abi"]
    )
    assert chain.actor.web3.eth.get_transaction(batch["transaction_hash"])["to"] == contract.address
    for line in lines:
        fields = [HexBytes(line["request_id"])]
        fields += [Web3.to_checksum_address(line[field]) for field in ("user", "provider")]
        proof = [HexBytes(node) for node in line["proof"]]
        for amount, agrees in ((int(line["amount"]), True), (int(line["amount"]) + 1, False)):
            line_fields = (*fields, line["tokens"], amount)
            verify = contract.functions.verifyUsage(HexBytes(batch["batch_id"]), line_fields, proof)
            assert verify.call() is agrees
        ours = UsageLine(
            bytes(fields[0]), line["user"], line["provider"], line["tokens"], int(line["amount"])
        )
        assert usage_tree.verify_proof(HexBytes(batch["usage_root"]), ours, proof)


async def test_a_provider_gets_the_proof_of_his_lines(
    chain_resources: Resources, escrow: EscrowReader, chain: Chain, settled: Gateway
) -> None:
    _, job = await settled_job(chain_resources, escrow, chain)
    receipt = await receipt_of(settled, job.request_id, PROVIDERS[1])
    assert [line["provider"] for line in receipt["batch"]["lines"]] == [PROVIDERS[1]]
    [row] = [
        row
        for row in await statement(settled, EARNINGS, PROVIDERS[1])
        if row["request_id"] == job.request_id
    ]
    assert row["payment"] == "settled"
    assert to_units(Decimal(row["payment_far"])) == int(receipt["batch"]["lines"][0]["amount"])
    assert row["batch_id"] == receipt["batch"]["batch_id"]
    assert row["transaction_hash"] == receipt["batch"]["transaction_hash"]
    assert row["settled_at"].endswith("Z")


ALTERATIONS = {
    "a line": "UPDATE node_contributions SET tokens_contributed = 8",
    "the root": f"UPDATE settlements SET usage_root = '0x{'12' * 32}'",
    "the tree": "UPDATE usage_trees SET nodes = overlay(nodes PLACING '\\x1234' FROM 1)",
    "no tree": "DELETE FROM usage_trees",
}


@pytest.mark.parametrize("altered", some_slow(ALTERATIONS, quick=["a line"]))
async def test_lines_that_were_altered_are_not_shown_as_proven(
    chain_resources: Resources,
    escrow: EscrowReader,
    chain: Chain,
    settled: Gateway,
    altered: str,
) -> None:
    user, job = await settled_job(chain_resources, escrow, chain)
    async with settled.sessions.begin() as db:
        await db.execute(text(ALTERATIONS[altered]))
    answer = await settled.client.get(
        f"/api/inference/jobs/{job.request_id}/receipt",
        headers=settled.login(user.address.lower()),
    )
    problem(answer, 500, "usage_unproven")


async def test_a_users_statement_is_read_page_by_page(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statements, "PAGE", 2)
    ended = []
    for tokens in range(5):
        job = await gateway.submit()
        await job.write(*["word"] * tokens)
        await job.complete()
        ended.append(job.id)
    failed = await gateway.submit()
    await failed.write("word")
    await failed.fail()
    await gateway.submit()  # still runs
    rows = await statement(gateway, USAGE)
    assert tuple(rows[0]) == statements.USER_COLUMNS
    assert [row["request_id"] for row in rows] == [*ended, failed.id]
    assert [row["tokens"] for row in rows] == ["0", "1", "2", "3", "4", "1"]
    assert (rows[3]["cost_far"], rows[3]["prompt_cost_far"]) == ("0.00042", "0.00012")
    assert (rows[3]["prompt_tokens"], rows[3]["cached_prompt_tokens"]) == ("12", "0")
    assert rows[3]["price_per_prompt_token_far"] == "0.00001"
    assert rows[3]["platform_fee_far"] == "0.000021"
    assert [row["payment"] for row in rows] == ["free", *["captured"] * 5]
    assert (rows[5]["status"], rows[5]["cost_far"]) == ("failed", "0.00022")
    assert await statement(gateway, USAGE, OTHER_WALLET) == []


async def test_a_providers_statement_is_read_page_by_page(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statements, "PAGE", 2)
    job = await gateway.submit()
    await job.write("one", " two")
    await job.complete()
    rows = await statement(gateway, EARNINGS, PROVIDER_WALLET)
    assert tuple(rows[0]) == statements.PROVIDER_COLUMNS
    assert [(row["first_layer"], row["last_layer"]) for row in rows] == [
        ("0", "1"),
        ("2", "3"),
        ("4", "5"),
    ]
    assert sum(Decimal(row["payment_far"]) for row in rows) == Decimal("0.000304")
    assert {row["prompt_tokens"] for row in rows} == {"12"}
    assert {row["payment"] for row in rows} == {"captured"}
    assert {row["model_id"] for row in rows} == {MODEL_ID}
    assert await statement(gateway, EARNINGS) == []


async def test_a_span_of_time_is_kept_to(gateway: Gateway) -> None:
    job = await gateway.submit()
    await job.write("one")
    await job.complete()
    assert len(await statement(gateway, f"{USAGE}?from=2020-01-01&to=2999-01-01")) == 1
    assert await statement(gateway, f"{USAGE}?to=2020-01-01T00:00:00Z") == []
    assert await statement(gateway, f"{USAGE}?from=2999-01-01") == []
    assert len(await statement(gateway, f"{USAGE}?from=2020-01-01T00:00:00%2B02:00")) == 1
    assert len(await statement(gateway, f"{USAGE}?from=0001-01-01T00:00:00%2B14:00")) == 1
    assert len(await statement(gateway, f"{USAGE}?to=9999-12-31T23:59:59-14:00")) == 1
    assert await statement(gateway, f"{USAGE}?from=2999-01-01&to=2020-01-01") == []


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("from=yesterday", "from_malformed"),
        ("from=1767225600", "from_malformed"),
        ("to=2026-02-30", "to_wrong_type"),
    ],
)
async def test_an_invalid_span_of_time_is_refused(gateway: Gateway, query: str, code: str) -> None:
    for url in (USAGE, EARNINGS):
        problem(await gateway.client.get(f"{url}?{query}"), 422, code)


async def test_a_statement_needs_a_login(gateway: Gateway) -> None:
    for url in (USAGE, EARNINGS):
        answer = await gateway.client.get(url, headers={"Authorization": ""})
        problem(answer, 401, "token_missing")


async def test_no_text_of_a_statement_is_a_formula(gateway: Gateway) -> None:
    job = await gateway.submit()
    await job.write("one")
    await job.complete()
    async with gateway.sessions.begin() as db:
        await db.execute(update(Job).values(model_id='=HYPERLINK("http://x","y")'))
    [row] = await statement(gateway, USAGE)
    assert row["model_id"] == '\'=HYPERLINK("http://x","y")'
