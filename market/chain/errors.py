"""Unreachable, moved, reorganised."""

from mesh.errors import MeshError


class ChainError(MeshError):
    code = "chain_error"
    status = 502
    title = "Chain error"


class ChainUnreachable(ChainError):
    code = "chain_unreachable"
    status = 503
    title = "Chain unreachable"


class AnswerTooLarge(ChainError):
    code = "answer_too_large"


class Reorganised(ChainError):
    code = "chain_reorganised"


class ChainMoved(ChainError):
    code = "chain_moved"
