"""What clients of Ethereum ask a node for, one by one."""

from typing import Any

import pytest
from eth_account import Account
from eth_account.messages import encode_defunct
from eth_account.signers.local import LocalAccount
from hexbytes import HexBytes

from market.chain.open_web3 import open_web3
from stack.dev_chain.evm import limited_state
from stack.dev_chain_client import development_account
from tests.conftest import Chain
from tests.integration.stack.dev_chain.conftest import RICH, Ask

COIN = 10**18
GWEI = 10**9


@pytest.fixture
def user(result: Ask) -> LocalAccount:
    """A wallet with one coin."""
    made: LocalAccount = Account.create()
    result("eth_sendTransaction", {"from": RICH.address, "to": made.address, "value": hex(COIN)})
    return made


def signed(sender: LocalAccount, **fields: Any) -> str:
    """A transaction's bytes: type 2, to the sender himself, unless others are given."""
    complete = {
        "chainId": 31337,
        "nonce": 0,
        "gas": 21_000,
        "to": sender.address,
        "value": 0,
        "maxFeePerGas": 3 * GWEI,
        "maxPriorityFeePerGas": GWEI,
    } | fields
    present = {key: value for key, value in complete.items() if value is not None}
    return sender.sign_transaction(present).raw_transaction.to_0x_hex()


def reverting(data: bytes) -> str:
    """Creation code that reverts with these bytes, of which there are less than 256."""
    return "0x60" + f"{len(data):02x}" + "600c60003960" + f"{len(data):02x}" + "6000fd" + data.hex()


def test_blocks_are_as_on_bsc(chain_url: str, result: Ask) -> None:
    result("evm_mine")
    for tag in ("latest", "earliest", "pending"):
        assert len(HexBytes(result("eth_getBlockByNumber", tag)["extraData"])) == 278
    block = open_web3(chain_url).eth.get_block("latest")
    assert len(block["proofOfAuthorityData"]) == 278  # type: ignore[typeddict-item]


def test_the_node_says_what_it_is(result: Ask) -> None:
    assert (result("eth_chainId"), result("net_version")) == ("0x7a69", "31337")
    assert result("web3_clientVersion").startswith("far-mesh/py-evm/")
    assert result("eth_syncing") is False
    assert RICH.address.lower() in result("eth_accounts")
    assert result("web3_sha3", "0x")[:10] == "0xc5d24601"


def test_a_block_is_found_by_number_tag_and_hash(result: Ask, user: LocalAccount) -> None:
    head = result("eth_getBlockByNumber", "latest", False)
    assert result("eth_getBlockByHash", head["hash"], False) == head
    assert result("eth_getBlockByNumber", head["number"]) == head
    for tag in ("safe", "finalized"):
        assert result("eth_getBlockByNumber", tag, False) == head
    [full] = result("eth_getBlockByNumber", "latest", True)["transactions"]
    assert full == result("eth_getTransactionByHash", head["transactions"][0])
    assert full == result("eth_getTransactionByBlockHashAndIndex", head["hash"], "0x0")
    assert full == result("eth_getTransactionByBlockNumberAndIndex", head["number"], "0x0")
    assert result("eth_getTransactionByBlockNumberAndIndex", head["number"], "0x1") is None
    assert result("eth_getBlockTransactionCountByHash", head["hash"]) == "0x1"
    receipts = result("eth_getBlockReceipts", head["number"])
    assert receipts == [result("eth_getTransactionReceipt", full["hash"])]
    assert receipts[0]["to"] == user.address.lower()
    pending = result("eth_getBlockByNumber", "pending", False)
    assert int(pending["number"], 16) == int(head["number"], 16) + 1
    assert (pending["hash"], pending["parentHash"]) == (None, head["hash"])


def test_what_is_not_there_is_null(result: Ask) -> None:
    nothing = "0x" + "12" * 32
    assert result("eth_getBlockByNumber", "0xffffff", False) is None
    assert result("eth_getBlockByHash", nothing, False) is None
    assert result("eth_getTransactionByHash", nothing) is None
    assert result("eth_getTransactionReceipt", nothing) is None


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (0, {"maxFeePerGas": None, "maxPriorityFeePerGas": None, "gasPrice": 3 * GWEI}),
        (
            1,
            {
                "maxFeePerGas": None,
                "maxPriorityFeePerGas": None,
                "gasPrice": 3 * GWEI,
                "gas": 40_000,
                "accessList": [{"address": RICH.address, "storageKeys": ["0x" + "01" * 32]}],
            },
        ),
        (2, {}),
    ],
)
def test_a_transaction_is_shown_as_it_was_signed(
    result: Ask, user: LocalAccount, kind: int, fields: dict[str, Any]
) -> None:
    raw = signed(user, **fields)
    sent = result("eth_sendRawTransaction", raw)
    shown = result("eth_getTransactionByHash", sent)
    assert int(shown["type"], 16) == kind
    assert (shown["from"], shown["to"], shown["input"]) == (*[user.address.lower()] * 2, "0x")
    assert Account.recover_transaction(raw) == user.address
    assert len(shown.get("accessList", [])) == (kind == 1)
    receipt = result("eth_getTransactionReceipt", sent)
    block = result("eth_getBlockByNumber", "latest", False)
    base = int(block["baseFeePerGas"], 16)
    paid = base + GWEI if kind == 2 else 3 * GWEI
    assert int(receipt["effectiveGasPrice"], 16) == int(shown["gasPrice"], 16) == paid
    assert (receipt["type"], receipt["status"], receipt["logs"]) == (hex(kind), "0x1", [])
    assert receipt["blockHash"] == shown["blockHash"] == block["hash"]


def test_fee_history(result: Ask, user: LocalAccount) -> None:
    result("evm_mine")
    history = result("eth_feeHistory", "0x2", "latest", [10, 50.5])
    head = result("eth_getBlockByNumber", "latest", False)
    assert int(history["oldestBlock"], 16) == int(head["number"], 16) - 1
    assert [len(history[name]) for name in ("baseFeePerGas", "gasUsedRatio", "reward")] == [3, 2, 2]
    assert history["gasUsedRatio"] == [21_000 / 30_000_000, 0]
    assert history["baseFeePerGas"][1] == head["baseFeePerGas"]
    assert history["reward"] == [[hex(GWEI)] * 2, ["0x0"] * 2]
    assert len(result("eth_feeHistory", 5000, "earliest")["gasUsedRatio"]) == 1
    assert "reward" not in result("eth_feeHistory", "0x1", "pending", [])


def test_gas_is_estimated_without_a_nonce_or_a_sender(result: Ask, user: LocalAccount) -> None:
    assert result("eth_estimateGas", {"to": user.address}) == hex(21_000)
    for more in ({"from": user.address}, {"nonce": "0x0"}, {"nonce": "0x63"}, {"type": "0x2"}):
        assert result("eth_estimateGas", {"to": user.address} | more, "latest") == hex(21_000)


@pytest.mark.parametrize("method", ["eth_call", "eth_estimateGas"])
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ("", ""),
        ("deadbeef", ""),
        (
            "08c379a0" + "20".rjust(64, "0") + "02".rjust(64, "0") + "6e6f".ljust(64, "0"),
            ": no",
        ),
        ("4e487b71" + "11".rjust(64, "0"), ": arithmetic underflow or overflow"),
        ("08c379a0" + "ff" * 32, ""),
    ],
)
def test_a_revert_carries_its_data(error: Ask, method: str, data: str, reason: str) -> None:
    found = error(method, {"from": RICH.address, "data": reverting(bytes.fromhex(data))})
    expected = {"code": 3, "message": "execution reverted" + reason, "data": "0x" + data}
    assert found == expected


@pytest.mark.parametrize(
    ("code", "call", "estimate"),
    [
        ("0xfe", "invalid opcode", "invalid opcode"),
        ("0x50", "stack underflow", "stack underflow"),
        ("0x5b600056", "out of gas", "gas required exceeds allowance (100000)"),
        ("0x600456", "invalid jump destination", "invalid jump destination"),
    ],
)
def test_a_fault_is_named(error: Ask, code: str, call: str, estimate: str) -> None:
    request = {"from": RICH.address, "data": code, "gas": hex(100_000)}
    assert error("eth_call", request) == {"code": -32000, "message": call}
    assert error("eth_estimateGas", request) == {"code": -32000, "message": estimate}


def test_a_sender_without_coins_is_refused(error: Ask, result: Ask) -> None:
    nobody = Account.create().address
    transfer = {"from": nobody, "to": RICH.address, "value": "0x1"}
    for method in ("eth_call", "eth_estimateGas"):
        assert error(method, transfer)["message"] == "insufficient funds for transfer"
    assert result("eth_call", {"from": nobody, "to": RICH.address}) == "0x"
    priced = {"from": nobody, "to": RICH.address, "maxFeePerGas": hex(GWEI)}
    assert error("eth_estimateGas", priced)["message"] == "gas required exceeds allowance (0)"


def test_refusals_of_transactions_are_in_the_words_of_geth(
    result: Ask, error: Ask, user: LocalAccount
) -> None:
    def refusal(**fields: Any) -> str:
        found = error("eth_sendRawTransaction", signed(user, **fields))
        assert found["code"] == -32000
        return str(found["message"])

    assert refusal(chainId=1) == "invalid chain id for signer: have 1 want 31337"
    assert refusal(gas=20_999) == "intrinsic gas too low: gas 20999, minimum needed 21000"
    assert refusal(gas=30_000_001) == "exceeds block gas limit"
    assert refusal(value=COIN).startswith("insufficient funds for gas * price + value: balance ")
    assert refusal(maxFeePerGas=0, maxPriorityFeePerGas=0).startswith(
        "max fee per gas less than block base fee: address 0x"
    )
    assert refusal(maxPriorityFeePerGas=4 * GWEI).startswith("max priority fee per gas higher than")
    legacy = {"maxFeePerGas": None, "maxPriorityFeePerGas": None, "gasPrice": 3 * GWEI}
    assert refusal(chainId=None, **legacy).startswith("only replay-protected (EIP-155)")
    for raw in ("0x", "0x02", "0x02f8", "0x09c0", "0xc0", "0x00"):
        assert error("eth_sendRawTransaction", raw)["code"] == -32000
    result("eth_sendRawTransaction", signed(user))
    assert refusal() == "nonce too low: next nonce 1, tx nonce 0"


def test_transactions_wait_for_those_before_them(
    result: Ask, error: Ask, user: LocalAccount
) -> None:
    later = [result("eth_sendRawTransaction", signed(user, nonce=nonce)) for nonce in (2, 1)]
    for sent in later:
        assert result("eth_getTransactionByHash", sent)["blockNumber"] is None
        assert result("eth_getTransactionReceipt", sent) is None
    again = error("eth_sendRawTransaction", signed(user, nonce=1))
    assert again["message"] == "already known"
    cheap = error("eth_sendRawTransaction", signed(user, nonce=1, maxFeePerGas=3 * GWEI + 1))
    assert cheap["message"] == "replacement transaction underpriced"
    fees = {"maxFeePerGas": 4 * GWEI, "maxPriorityFeePerGas": 2 * GWEI}
    replaced = result("eth_sendRawTransaction", signed(user, nonce=1, **fees))
    first = result("eth_sendRawTransaction", signed(user))
    numbers = [
        int(result("eth_getTransactionReceipt", sent)["blockNumber"], 16)
        for sent in (first, replaced, later[0])
    ]
    assert numbers == list(range(numbers[0], numbers[0] + 3))
    assert result("eth_getTransactionByHash", later[1]) is None
    assert result("eth_getTransactionCount", user.address, "pending") == "0x3"


def test_state_is_read_as_of_a_block(result: Ask, chain: Chain) -> None:
    token = chain.actor.contract("FarToken", chain.deployment.token)
    before = result("eth_blockNumber")
    holder = Account.create().address
    chain.actor.call(chain.actor.treasury, token.functions.transfer(holder, 5))
    balance_of = {"to": token.address, "data": token.encode_abi("balanceOf", args=[holder])}
    assert int(result("eth_call", balance_of, "latest"), 16) == 5
    assert int(result("eth_call", balance_of, before), 16) == 0
    head = result("eth_getBlockByNumber", "latest", False)
    assert int(result("eth_call", balance_of, {"blockHash": head["hash"]}), 16) == 5
    assert int(result("eth_call", balance_of, {"blockNumber": before}), 16) == 0
    assert result("eth_getCode", token.address, "0x0") == "0x"
    assert len(result("eth_getCode", token.address)) > 1000
    assert len(HexBytes(result("eth_getStorageAt", token.address, "0x0", "latest"))) == 32
    assert result("eth_getTransactionCount", RICH.address, "earliest") == "0x0"


def test_logs_are_found_by_range_address_and_topic(result: Ask, error: Ask, chain: Chain) -> None:
    token = chain.actor.contract("FarToken", chain.deployment.token)
    holder = Account.create().address
    number = result("eth_newFilter", {"address": token.address})
    blocks = result("eth_newBlockFilter")
    sent = chain.actor.call(chain.actor.treasury, token.functions.transfer(holder, 5))
    receipt = result("eth_getTransactionReceipt", sent)
    [log] = receipt["logs"]
    transfer, treasury, to = log["topics"]
    first = {"fromBlock": hex(chain.deployment.block)}
    assert result(
        "eth_getLogs", first | {"address": token.address, "topics": [None, None, to]}
    ) == [log]
    assert result("eth_getLogs", first | {"topics": [[transfer, to], treasury, [to]]}) == [log]
    assert result("eth_getLogs", {"blockHash": receipt["blockHash"]}) == [log]
    assert result("eth_getLogs", {"address": [token.address]}) == [log], "the newest block's"
    assert result("eth_getLogs", first | {"address": RICH.address}) == []
    assert result("eth_getLogs", first | {"topics": [transfer, to]}) == []
    assert error("eth_getLogs", {"blockHash": "0x" + "11" * 32})["message"] == "unknown block"

    assert result("eth_getFilterChanges", number) == [log]
    assert result("eth_getFilterChanges", number) == []
    assert result("eth_getFilterChanges", blocks) == [receipt["blockHash"]]
    assert result("eth_getFilterLogs", number) == [log]
    assert result("eth_uninstallFilter", number) is True
    assert error("eth_getFilterChanges", number)["message"] == "filter not found"


def test_a_reverted_transaction_is_mined_and_says_so(result: Ask, user: LocalAccount) -> None:
    creation = {"to": None, "data": reverting(b""), "gas": 100_000}
    sent = result("eth_sendRawTransaction", signed(user, **creation))
    assert result("eth_getTransactionReceipt", sent)["status"] == "0x0"


def test_the_node_signs_for_its_accounts_alone(result: Ask, error: Ask) -> None:
    text = "0x" + b"Far Mesh".hex()
    signature = result("personal_sign", text, RICH.address)
    assert signature == result("eth_sign", RICH.address, text)
    assert Account.recover_message(encode_defunct(hexstr=text), signature=signature) == RICH.address
    stranger = Account.create().address
    for refused in (
        error("personal_sign", text, stranger),
        error("eth_sendTransaction", {"from": stranger, "to": stranger}),
    ):
        assert refused == {"code": -32000, "message": "unknown account"}
    assert error("eth_signTypedData_v4", RICH.address, "{")["code"] == -32602
    assert error("eth_signTypedData_v4", RICH.address, {"types": 1})["code"] == -32602


def test_a_loop_without_end_is_aborted(
    result: Ask, error: Ask, user: LocalAccount, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limited_state, "EXECUTION_LIMIT", 0.2)
    aborted = {"code": -32000, "message": "execution aborted (timeout = 0s)"}
    loop = {"from": user.address, "data": "0x5b600056"}
    assert error("eth_call", loop) == aborted
    assert error("eth_estimateGas", loop) == aborted
    creation = {"to": None, "data": "0x5b600056", "gas": 29_000_000}
    assert error("eth_sendRawTransaction", signed(user, **creation)) == aborted
    assert result("eth_getTransactionCount", user.address, "latest") == "0x0"


def test_a_snapshot_is_gone_back_to(result: Ask) -> None:
    height, taken = result("eth_blockNumber"), result("evm_snapshot")
    receiver = Account.create().address
    gift = {"from": RICH.address, "to": receiver, "value": "0x1"}
    sent = result("eth_sendTransaction", gift)
    left = result("eth_getBlockByNumber", "latest", False)["hash"]
    assert result("evm_revert", taken) is True
    assert result("eth_blockNumber") == height
    assert result("eth_getTransactionReceipt", sent) is None
    assert result("eth_getBlockByHash", left, False) is None
    assert result("eth_getBalance", receiver) == "0x0"
    assert result("evm_revert", taken) is False, "once"
    result("evm_mine")
    assert result("eth_getBlockByNumber", "latest", False)["hash"] != left


def test_time_passes_as_a_test_wants(result: Ask, error: Ask) -> None:
    taken = result("evm_snapshot")
    now = int(result("eth_getBlockByNumber", "latest", False)["timestamp"], 16)
    result("evm_setNextBlockTimestamp", now + 1000)
    result("evm_mine")
    result("evm_increaseTime", 5000)
    result("evm_mine")
    later = int(result("eth_getBlockByNumber", "latest", False)["timestamp"], 16)
    assert 6000 <= later - now < 6100
    assert error("evm_setNextBlockTimestamp", now)["code"] == -32000
    result("evm_mine", later + 7)
    assert int(result("eth_getBlockByNumber", "latest", False)["timestamp"], 16) == later + 7
    result("evm_revert", taken)


def test_development_accounts_are_those_of_anvil() -> None:
    assert development_account(0).address == "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266"
