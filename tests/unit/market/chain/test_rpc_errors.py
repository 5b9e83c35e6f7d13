"""What clients say, with where they say it, and what is made of it."""

from typing import Any

import pytest

from market.chain.rpc_errors import SendOutcome, asks_another, is_not_found, refusal

ACCEPTED = SendOutcome.ACCEPTED
NONCE_USED = SendOutcome.NONCE_USED
UNDERPRICED = SendOutcome.UNDERPRICED

GETH = "ethereum/go-ethereum core/txpool/errors.go"
GETH_CORE = "ethereum/go-ethereum core/error.go"
BSC = "bnb-chain/bsc core/txpool/errors.go"
ERIGON = "erigontech/erigon txnprovider/txpool/txpoolcfg/txpoolcfg.go, behind txpool.ImportResult"
NETHERMIND = "NethermindEth/nethermind Nethermind.TxPool/TxPoolErrorMessages.cs"
NETHERMIND_NAMES = "NethermindEth/nethermind Nethermind.TxPool/AcceptTxResult.cs until 2025"
BESU = "hyperledger/besu ethereum/api .../internal/response/RpcErrorType.java"
RETH = "paradigmxyz/reth crates/transaction-pool/src/error.rs"
RETH_RPC = "paradigmxyz/reth crates/rpc/rpc-eth-types/src/error/mod.rs"
ANVIL = "foundry-rs/foundry crates/anvil/src/eth/error.rs"
PY_EVM = "ethereum/py-evm eth/vm/forks/frontier/validation.py, as eth-tester passes it on"

SENT = [
    (GETH, "already known", ACCEPTED),
    (GETH, "replacement transaction underpriced", UNDERPRICED),
    (GETH, "transaction underpriced: gas tip cap 1, minimum needed 2", UNDERPRICED),
    (GETH, "txpool is full", UNDERPRICED),
    (GETH, "future transaction tries to replace pending", None),
    (GETH, "authority nonce too low", None),
    (GETH_CORE, "nonce too low: next nonce 78, tx nonce 44", NONCE_USED),
    (
        GETH_CORE,
        "max fee per gas less than block base fee: address 0xAA, maxFeePerGas: 1, baseFee: 7",
        UNDERPRICED,
    ),
    (GETH_CORE, "insufficient funds for gas * price + value: balance 0, tx cost 1", None),
    (BSC, "transaction underpriced, so it is either in pool2 or pool3", UNDERPRICED),
    (BSC, "sender or to in black list", None),
    (ERIGON, "ALREADY_EXISTS: already known", ACCEPTED),
    (ERIGON, "INTERNAL_ERROR: existing tx with same hash", ACCEPTED),
    (ERIGON, "INTERNAL_ERROR: existing txn with same hash", ACCEPTED),
    (ERIGON, "INTERNAL_ERROR: could not replace existing tx", UNDERPRICED),
    (ERIGON, "FEE_TOO_LOW: underpriced", UNDERPRICED),
    (ERIGON, "FEE_TOO_LOW: fee too low", UNDERPRICED),
    (ERIGON, "INTERNAL_ERROR: pending sub-pool is full", UNDERPRICED),
    (ERIGON, "INTERNAL_ERROR: nonce too low", NONCE_USED),
    (ERIGON, "INTERNAL_ERROR: insufficient funds", None),
    (NETHERMIND, "already known", ACCEPTED),
    (NETHERMIND, "nonce too low, Current nonce: 9, nonce of rejected tx: 8.", NONCE_USED),
    (NETHERMIND, "replacement transaction underpriced", UNDERPRICED),
    (NETHERMIND, "nonce too far in future", None),
    (NETHERMIND_NAMES, "AlreadyKnown", ACCEPTED),
    (NETHERMIND_NAMES, "OldNonce, Current nonce: 9, nonce of rejected tx: 8.", NONCE_USED),
    (NETHERMIND_NAMES, "ReplacementNotAllowed", UNDERPRICED),
    (NETHERMIND_NAMES, "FeeTooLow, MaxFeePerGas too low.", UNDERPRICED),
    (NETHERMIND_NAMES, "FeeTooLowToCompete", UNDERPRICED),
    (NETHERMIND_NAMES, "InsufficientFunds", None),
    (BESU, "Known transaction", ACCEPTED),
    (BESU, "Nonce too low", NONCE_USED),
    (BESU, "Replacement transaction underpriced", UNDERPRICED),
    (BESU, "Gas price below configured minimum gas price", UNDERPRICED),
    (BESU, "Gas price below current base fee", UNDERPRICED),
    (BESU, "An invalid transaction with a lower nonce exists", None),
    (RETH, "[0xab]: already imported", ACCEPTED),
    (RETH, "insufficient gas price to replace existing transaction", UNDERPRICED),
    (RETH, "transaction feeCap 7 below chain minimum", UNDERPRICED),
    (RETH, "transaction discarded outright due to pool size constraints", UNDERPRICED),
    (RETH_RPC, "already known", ACCEPTED),
    (RETH_RPC, "nonce too low: next nonce 5, tx nonce 4", NONCE_USED),
    (RETH_RPC, "max fee per gas less than block base fee", UNDERPRICED),
    (RETH_RPC, "replacement transaction underpriced", UNDERPRICED),
    (ANVIL, "Tx: [0xab] already Imported", ACCEPTED),
    (ANVIL, "Tx: [0xab] insufficient gas price to replace existing transaction", UNDERPRICED),
    (ANVIL, "nonce too low", NONCE_USED),
    (ANVIL, "Unknown transaction type not supported", None),
    (PY_EVM, "Invalid transaction nonce: Expected 5, but got 4", NONCE_USED),
]


@pytest.mark.parametrize(("source", "message", "outcome"), SENT)
@pytest.mark.parametrize("change", [str, str.upper, str.lower])
def test_what_clients_say_of_a_transaction(
    source: str, message: str, outcome: SendOutcome | None, change: Any
) -> None:
    assert refusal(change(message)) is outcome, source


GETH_FILTERS = "ethereum/go-ethereum eth/filters"
LOGS, CALL, RECEIPT, BLOCK = (
    "eth_getLogs",
    "eth_call",
    "eth_getTransactionReceipt",
    "eth_getBlockByNumber",
)
OTHERS_MAY = [
    ("ethereum/go-ethereum internal/ethapi", CALL, -32000, "header not found"),
    ("bnb-chain/bsc#981", CALL, -32000, "missing trie node 7c1d37 (path )"),
    ("bnb-chain/bsc eth/state_accessor.go", CALL, -32000, "required historical state unavailable"),
    (
        "ethereum/go-ethereum internal/ethapi",
        RECEIPT,
        -32000,
        "transaction indexing is in progress",
    ),
    (GETH_FILTERS, LOGS, 4444, "pruned history unavailable"),
    (
        "paradigmxyz/reth crates/rpc/rpc-eth-types/src/logs_utils.rs",
        LOGS,
        -32602,
        "block range extends beyond current head block",
    ),
    (RETH_RPC, CALL, -32001, "block not found: 0x2a"),
    (BESU, CALL, -32000, "World state unavailable"),
    (BESU, CALL, -32000, "Block not found"),
    (BESU, "eth_sendRawTransaction", -32008, "Initial sync is still in progress"),
    ("NethermindEth/nethermind", CALL, -32002, "No state available for block 5 (0xab)"),
    (ANVIL, CALL, -32001, "Resource not found"),
    (ANVIL, CALL, -32602, "BlockOutOfRangeError: block height is 5 but requested was 9"),
    ("EIP-1474", CALL, -32005, "limit exceeded"),
    ("INFURA", LOGS, -32005, "daily request count exceeded, request rate limited"),
    ("ALCHEMY", LOGS, 429, "has exceeded its compute units per second capacity"),
]


@pytest.mark.parametrize(("source", "method", "code", "message"), OTHERS_MAY)
def test_what_another_endpoint_may_know(source: str, method: str, code: int, message: str) -> None:
    assert asks_another(method, {"error": {"code": code, "message": message}}), source


ANSWERS = [
    (LOGS, -32005, "query returned more than 10000 results"),
    (LOGS, -32000, "exceed maximum block range: 5000"),
    (LOGS, -32602, "query block range exceeds server limit, narrow your filter: 1000"),
    (LOGS, -32000, "query returns too many logs, narrow your filter: 20000"),
    (LOGS, -32005, "Requested range exceeds maximum RPC range limit"),
    (LOGS, -32602, "range 1000000 exceeds limit of 10000"),
    (LOGS, -32000, "block range is bigger than maxBlockRange"),
    (LOGS, -32602, "query exceeds max block range 10000"),
    (LOGS, -32602, "Log response size exceeded."),
    (CALL, 3, "execution reverted"),
    (CALL, -32601, "the method eth_getBlockReceipts does not exist/is not available"),
]
"""A range that is too large is divided by whoever asks for it; a revert is the contract's word."""


@pytest.mark.parametrize(("method", "code", "message"), ANSWERS)
def test_what_is_an_answer(method: str, code: int, message: str) -> None:
    assert asks_another(method, {"error": {"code": code, "message": message}}) is None


@pytest.mark.parametrize(
    ("source", "method", "message"),
    [
        ("ethereum/go-ethereum eth/api_backend.go", BLOCK, "finalized block not found"),
        ("ethereum/go-ethereum eth/api_backend.go", BLOCK, "header not found"),
        (BESU, BLOCK, "Unknown block"),
        (RETH_RPC, BLOCK, "block not found: finalized"),
        ("ethereum/eth-tester backends/pyevm/main.py", BLOCK, "No block found for block number: 9"),
        (BESU, RECEIPT, "Transaction not found"),
        (ANVIL, RECEIPT, "transaction not found"),
    ],
)
def test_what_is_not_there_is_none(source: str, method: str, message: str) -> None:
    answer = {"error": {"code": -32000, "message": message}}
    assert is_not_found(method, answer), source
    assert not is_not_found(method, {"result": None})
    assert not is_not_found(CALL, answer)
