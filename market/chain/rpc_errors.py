"""What clients of EVM chains say when they refuse: JSON-RPC has hardly any codes for it.

The phrases are those of geth and BSC, Erigon, Nethermind, Besu, reth, anvil and eth-tester; the
test of this module has each message with its source. Case does not count.
"""

import re
from enum import StrEnum
from typing import Any

LIMIT_EXCEEDED = -32005
"""JSON-RPC code for "limit exceeded" (EIP-1474): of requests, or of what one request asks for."""


class SendOutcome(StrEnum):
    """What became of sending a signed transaction."""

    ACCEPTED = "accepted"
    """An endpoint has it now, or had it already."""
    NONCE_USED = "nonce_used"
    """The transaction was mined, or another one with its nonce."""
    UNDERPRICED = "underpriced"
    """The nonce is taken by one that offers about as much, or the chain asks for more."""


REFUSALS = {
    SendOutcome.ACCEPTED: re.compile(
        "already ?known"
        r"|\bknown transaction"
        "|already imported"
        "|already in mempool"
        "|existing txn? with same hash",
        re.IGNORECASE,
    ),
    SendOutcome.NONCE_USED: re.compile(
        "(?<!authority )nonce (?:is )?too low"
        "|invalid transaction nonce"
        r"|\boldnonce"
        "|lower than the current nonce",
        re.IGNORECASE,
    ),
    SendOutcome.UNDERPRICED: re.compile(
        "underpriced"
        "|fee ?too ?low"
        "|could not replace existing tx"
        "|insufficient gas price to replace"
        "|replacement ?not ?allowed"
        "|fee (?:per gas|cap) less than block base fee"
        "|gas price below"
        "|below chain minimum"
        "|pool is full"
        "|pool size constraints",
        re.IGNORECASE,
    ),
}
"""By what an endpoint says of a transaction, the most hopeful first."""

REQUESTS_LIMITED = re.compile(
    "too many requests|rate.limit|request limit|request count exceeded|units per second",
    re.IGNORECASE,
)
"""One asks too often."""

DATA_MISSING = re.compile(
    # Blocks that the endpoint does not have yet, or not any more.
    "header not found"
    "|header for hash not found"
    r"|block (?:#?\w+ )?(?:is )?not found"
    "|unknown block"
    "|no block found"
    "|resource not found"
    "|block range extends beyond current head"
    "|blockoutofrange"
    "|pruned history unavailable"
    "|history has been pruned"
    # State of a block that it does have.
    "|missing trie node"
    "|state (?:is )?(?:unavailable|not available)"
    "|no state available"
    "|state .{1,80} is not available"
    "|required data unavailable"
    # It is still reading the chain.
    "|indexing is in progress"
    "|sync is still in progress"
    "|node is syncing"
    "|not yet in sync",
    re.IGNORECASE,
)
"""The endpoint lacks something that others may have: it lags, prunes, or is still syncing."""

TRANSACTION_UNKNOWN = re.compile(
    "transaction not found|unknown transaction|no transaction found", re.IGNORECASE
)
"""None that was mined or waits has the hash."""


def error_message(answer: Any) -> str:
    """What a JSON-RPC answer complains of; empty for a result."""
    error = answer.get("error")
    if error is None:
        return ""
    return str(error.get("message") if isinstance(error, dict) else error) or "no reason"


def error_code(answer: Any) -> int | None:
    """The code of an answer that is a JSON-RPC error."""
    error = answer.get("error")
    return error.get("code") if isinstance(error, dict) else None


def refusal(message: str) -> SendOutcome | None:
    """What an endpoint's message means for a transaction that was sent; none if it is another
    refusal."""
    return next((outcome for outcome, said in REFUSALS.items() if said.search(message)), None)


def asks_another(method: str, answer: Any) -> str | None:
    """Why an answer is no answer, and another endpoint has to be asked; none if it is one.

    A request for logs that is refused for its size is answered: who asks will ask for less.
    """
    message = error_message(answer)
    if not message:
        return None
    if REQUESTS_LIMITED.search(message):
        return "too many requests"
    if error_code(answer) == LIMIT_EXCEEDED and method != "eth_getLogs":
        return "limit exceeded"
    if DATA_MISSING.search(message):
        return "does not have the data"
    return None


def is_not_found(method: str, answer: Any) -> bool:
    """Whether an endpoint says by an error that it does not have the block or the transaction that
    is asked for. Most answer null."""
    message = error_message(answer)
    if method == "eth_getBlockByNumber":
        return bool(DATA_MISSING.search(message))
    return method == "eth_getTransactionReceipt" and bool(TRANSACTION_UNKNOWN.search(message))
