"""Calls that leave nothing behind, and how much gas a transaction needs (geth's `eth_call` and
`eth_estimateGas`)."""

from typing import Any

from eth.abc import ComputationAPI, StateAPI
from eth.constants import CREATE_CONTRACT_ADDRESS, GAS_TX, ZERO_ADDRESS
from eth.exceptions import (
    ContractCreationCollision,
    FullStack,
    InsufficientFunds,
    InsufficientStack,
    InvalidInstruction,
    InvalidJumpDestination,
    OutOfBoundsRead,
    OutOfGas,
    ReservedBytesInCode,
    Revert,
    StackDepthLimit,
    VMError,
    WriteProtection,
)
from eth.vm.forks.prague.constants import STANDARD_TOKEN_COST, TOTAL_COST_FLOOR_PER_TOKEN
from eth.vm.forks.prague.transactions import PragueTransactionBuilder
from eth.vm.spoof import SpoofTransaction

from stack.dev_chain.errors import ExecutionReverted, RpcError
from stack.dev_chain.evm.chain import CHAIN_ID
from stack.dev_chain.params import TransactionRequest

TOLERANCE = 0.015
"""Share by which an estimate may be above what is needed; geth's."""

CALL_STIPEND = 2300
"""Gas that a call with value brings along (yellow paper, G_callstipend)."""

FAULTS: dict[type[VMError], str] = {
    ContractCreationCollision: "contract address collision",
    FullStack: "stack limit reached 1024 (1023)",
    InsufficientFunds: "insufficient balance for transfer",
    InsufficientStack: "stack underflow",
    InvalidInstruction: "invalid opcode",
    InvalidJumpDestination: "invalid jump destination",
    OutOfBoundsRead: "return data out of bounds",
    OutOfGas: "out of gas",
    ReservedBytesInCode: "invalid code: must not begin with 0xef",
    StackDepthLimit: "max call depth exceeded",
    WriteProtection: "write protection",
}
"""Why an execution ends without a revert, in geth's words."""


def call(state: StateAPI, request: TransactionRequest) -> bytes:
    """What the call returns.

    Raises:
        ExecutionReverted: the contract reverts.
        RpcError: anything else that geth refuses or that ends an execution.
    """
    _check_funds(state, request)
    gas = min(request.gas or state.gas_limit, state.gas_limit)
    computation = _execute(state, request, gas)
    if computation.is_error:
        raise _failure(computation)
    return bytes(computation.output)


def estimate_gas(state: StateAPI, request: TransactionRequest) -> int:
    """Gas with which the transaction succeeds, at most `TOLERANCE` more than it needs.

    Raises:
        ExecutionReverted: the contract reverts whatever it is given.
        RpcError: it fails whatever it is given, or needs more than its sender can pay for.
    """
    _check_funds(state, request)
    most = min(request.gas or state.gas_limit, state.gas_limit)
    if request.fee_cap:
        paid = state.get_balance(_sender(request)) - request.value
        most = min(most, paid // request.fee_cap)
    least = minimum_gas(_unsigned(state, request, most))
    if most < least:
        raise RpcError(f"gas required exceeds allowance ({most})")
    full = _attempt(state, request, most)
    if full.is_error:
        if isinstance(full.error, OutOfGas):
            raise RpcError(f"gas required exceeds allowance ({most})")
        raise _failure(full)
    used = max(most - full.get_gas_remaining(), least)
    # Less cannot do. As much does, unless a call inside is passed less than all (EIP-150): then
    # about as much, and what a call with value brings along, in front of it.
    low, high = used - 1, most
    guesses = iter((used, (used + CALL_STIPEND) * 64 // 63))
    while high - low > 1 and (high - low) / high > TOLERANCE:
        middle = min(next(guesses, (low + high) // 2), 2 * low, high - 1)
        if _attempt(state, request, middle).is_error:
            low = middle
        else:
            high = middle
    return high


def minimum_gas(transaction: Any) -> int:
    """Gas that a transaction costs before it executes anything, and at least (EIP-7623)."""
    zeros = transaction.data.count(0)
    tokens: int = zeros + (len(transaction.data) - zeros) * STANDARD_TOKEN_COST
    intrinsic: int = transaction.intrinsic_gas
    floor: int = GAS_TX + TOTAL_COST_FLOOR_PER_TOKEN * tokens
    return max(intrinsic, floor)


def _check_funds(state: StateAPI, request: TransactionRequest) -> None:
    if request.value > state.get_balance(_sender(request)):
        raise RpcError("insufficient funds for transfer")


def _attempt(state: StateAPI, request: TransactionRequest, gas: int) -> ComputationAPI:
    """Execute, and undo what was done."""
    snapshot = state.snapshot()
    try:
        return _execute(state, request, gas)
    finally:
        state.revert(snapshot)


def _execute(state: StateAPI, request: TransactionRequest, gas: int) -> ComputationAPI:
    # Without a fee, so that the sender needs coins for the value only.
    transaction: Any = SpoofTransaction(_unsigned(state, request, gas), from_=_sender(request))
    least = minimum_gas(transaction)
    if gas < least:
        raise RpcError(f"intrinsic gas too low: have {gas}, want {least}")
    executor = state.get_transaction_executor()
    message = executor.build_evm_message(transaction)
    return executor.build_computation(message, transaction)


def _unsigned(state: StateAPI, request: TransactionRequest, gas: int) -> Any:
    return PragueTransactionBuilder.new_unsigned_dynamic_fee_transaction(
        chain_id=CHAIN_ID,
        nonce=state.get_nonce(_sender(request)),
        max_priority_fee_per_gas=0,
        max_fee_per_gas=0,
        gas=gas,
        to=request.to or CREATE_CONTRACT_ADDRESS,
        value=request.value,
        data=request.data,
        access_list=request.access_list,
    )


def _sender(request: TransactionRequest) -> Any:
    return request.sender or ZERO_ADDRESS


def _failure(computation: ComputationAPI) -> RpcError:
    error = computation.error
    if isinstance(error, Revert):
        return ExecutionReverted(bytes(computation.output))
    return RpcError(FAULTS.get(type(error), str(error)))
