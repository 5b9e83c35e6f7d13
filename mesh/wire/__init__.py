"""Messages between supervisors, nodes and readers, their bytes, and their limits.

:mod:`mesh.wire.limits` and :mod:`mesh.wire.refusal_codes` are imported by their own names.
"""

from mesh.wire.codec import (
    HEADER,
    TENSOR,
    decode,
    encode,
    tensor_bytes,
)
from mesh.wire.messages import (
    DTYPES,
    INT8_BLOCK,
    Cancel,
    Close,
    ControlMessage,
    Ended,
    GenerationRefused,
    Message,
    Open,
    OpenEdge,
    Ping,
    Pong,
    PrefixCached,
    Prompt,
    Resume,
    SamplingParams,
    StageAssignment,
    Step,
    Steps,
    StopEpoch,
    Token,
)

__all__ = [
    "DTYPES",
    "HEADER",
    "INT8_BLOCK",
    "TENSOR",
    "Cancel",
    "Close",
    "ControlMessage",
    "Ended",
    "GenerationRefused",
    "Message",
    "Open",
    "OpenEdge",
    "Ping",
    "Pong",
    "PrefixCached",
    "Prompt",
    "Resume",
    "SamplingParams",
    "StageAssignment",
    "Step",
    "Steps",
    "StopEpoch",
    "Token",
    "decode",
    "encode",
    "tensor_bytes",
]
