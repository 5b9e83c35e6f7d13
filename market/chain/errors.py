"""Errors of a chain: unreachable, answer too large, reorg, chain changed while it was read."""

from mesh.errors import MeshError


class ChainError(MeshError):
    """The chain refused, or did not answer."""

    code = "chain_error"
    status = 502
    title = "Chain error"


class ChainUnreachable(ChainError):
    """No endpoint gives an answer that can be used."""

    code = "chain_unreachable"
    status = 503
    title = "Chain unreachable"


class AnswerTooLarge(ChainError):
    """An endpoint answers with more bytes than are read."""

    code = "answer_too_large"


class ChainReorg(ChainError):
    """A block that was read and counted is not on the chain any more."""

    code = "chain_reorganised"


class ChainMoved(ChainError):
    """The chain moved while it was read, or the endpoint is behind: reading again will do."""

    code = "chain_moved"
