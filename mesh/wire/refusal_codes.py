"""What nodes say when they refuse a generation, whom each code accuses, and which are known names.

A node may send any text; this becomes a metric's label and a word in the log.
"""

from mesh.wire import GenerationRefused

LOST_STATE = frozenset({"forgotten", "no_replay", "gap"})
"""What a node should have is not there. Messages get lost and processes start anew, so once in a
generation that is nobody's fault, and the next epoch begins afresh; a second time the node is
avoided, or for a ``gap`` the node and who should have sent the step."""

NOT_NOW = frozenset({"kv_full", "moved"})
"""The node does not take the generation now: its KV cache is full, or the route's span is not
served."""

INVALID_REQUEST = "invalid_request"
"""What the opening message asks for cannot be computed by any node: a token id that has no
embedding, no token at all, more positions than the model has. No other node need be asked."""

GENERATION_FAILED = "generation_failed"
"""Computing this generation raised an exception, at the position that the node's log has. Its KV
cache is gone. Either the node is broken or what the generation consists of breaks nodes: if another
node fails at the same number of tokens too, no third one need be asked."""

GRAMMAR_REFUSED = "grammar_refused"
"""The edge cannot follow the generation's grammar: it does not fit the model's tokenizer, or is too
costly with this text; or the tokens of earlier epochs have not followed it. Nobody is to blame, and
no other node would do better."""

OWN_FAULTS = LOST_STATE | NOT_NOW | {INVALID_REQUEST, GENERATION_FAILED, GRAMMAR_REFUSED}
"""Codes by which a node can refuse for itself only."""

SENDER_FAULTS = frozenset({"capacity", "flood", "not_finite", "wire_error"})
"""Codes by which a node accuses who sends its steps."""

INPUT_FAULTS = frozenset({INVALID_REQUEST, GENERATION_FAILED, "not_finite"})
"""Codes of what may come from the prompt, or from any node that has computed before, whichever
node computes it."""

KNOWN_CODES = OWN_FAULTS | SENDER_FAULTS
"""Codes by which nodes refuse."""

BROKEN_RULE = "broken_rule"
"""Stands for all other codes: what the relay refuses, which its own log and metric have, and what a
node made up."""


def known_code(refused: GenerationRefused) -> str:
    """Why a generation was refused, by a name that we know."""
    return refused.code if refused.code in KNOWN_CODES else BROKEN_RULE
