"""Executions that end: whatever a contract does, the chain answers the next call."""

import time
from typing import Any

from eth.vm.forks.prague.computation import PragueComputation
from eth.vm.forks.prague.state import PragueState

from stack.dev_chain.errors import RpcError

EXECUTION_LIMIT = 20.0
"""Seconds of processor time for all that runs on one state. A block's gas is used up in a minute by
a loop that does nothing, and far sooner by anything else; geth, which is faster, gives a call 5."""


class LimitedComputation(PragueComputation):
    def consume_gas(self, amount: int, reason: str) -> None:
        """
        Raises:
            RpcError: the state's time is over.
        """
        state: Any = self.state
        if time.thread_time() > state.give_up:
            raise RpcError(f"execution aborted (timeout = {EXECUTION_LIMIT:.0f}s)")
        super().consume_gas(amount, reason)


class LimitedState(PragueState):
    """A state for one call, estimate or block, used by the thread that opens it."""

    computation_class = LimitedComputation

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.give_up = time.thread_time() + EXECUTION_LIMIT
