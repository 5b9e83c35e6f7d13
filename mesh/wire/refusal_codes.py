"""What nodes say when they refuse a generation, and what of it is a name that we know.

A node may say anything; what it says becomes a metric's label and a word in the log.
"""

from mesh.wire import Refused

LOST_STATE = frozenset({"forgotten", "no_replay", "gap"})
"""What a node should have is not there. Messages get lost and processes start anew, so once in a
generation a node is believed, and the next epoch begins afresh; a second time it is to blame."""

OWN_FAULTS = LOST_STATE | {"kv_full", "moved"}
"""What a node can say of itself only."""

KNOWN_CODES = OWN_FAULTS | {"capacity", "flood", "not_finite", "wire_error"}
"""What nodes say."""

BROKEN_RULE = "broken_rule"
"""Whatever else there is: what the relay objects to, whose own log and metric tell it, and what a
node made up."""


def known_code(refused: Refused) -> str:
    """Why a generation was refused, by a name that we know."""
    return refused.code if refused.code in KNOWN_CODES else BROKEN_RULE
