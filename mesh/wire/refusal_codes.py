"""What nodes say when they refuse a generation, and what of it is a name that we know.

A node may say anything; what it says becomes a metric's label and a word in the log.
"""

from mesh.wire import GenerationRefused

STATE_LOST = frozenset({"forgotten", "no_replay", "gap"})
"""What a node should have is not there. Messages get lost and processes start anew, so once in a
generation a node is believed, and the next epoch begins afresh; a second time it is to blame."""

SELF_INFLICTED = STATE_LOST | {"kv_full", "moved"}
"""What a node can say of itself only: nobody but the sender is to blame."""

NODE_CODES = SELF_INFLICTED | {"capacity", "flood", "not_finite", "wire_error"}
"""All that a node's software says of a generation that it refuses."""

BROKEN_RULE = "broken_rule"
"""Whatever else there is: what the relay objects to, whose own log and metric tell it, and what a
node made up."""


def code_of(refused: GenerationRefused) -> str:
    """Why a generation was refused: one of :data:`NODE_CODES`, else :data:`BROKEN_RULE`."""
    return refused.code if refused.code in NODE_CODES else BROKEN_RULE
