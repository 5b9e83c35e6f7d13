"""Refusals as JSON-RPC has them: geth's codes and messages, which wallets know.

Codes: JSON-RPC 2.0 §5.1, EIP-1474, and geth's own 3 for a revert.
"""

from typing import Any

from eth_abi.abi import decode
from eth_abi.exceptions import DecodingError
from eth_typing import HexStr
from eth_utils.hexadecimal import encode_hex

ERROR_SELECTOR = bytes.fromhex("08c379a0")
"""Solidity's ``Error(string)``: a revert with a reason."""

PANIC_SELECTOR = bytes.fromhex("4e487b71")
"""Solidity's ``Panic(uint256)``: a failed check of the compiler."""

PANICS = {
    0x00: "generic panic",
    0x01: "assert(false)",
    0x11: "arithmetic underflow or overflow",
    0x12: "division or modulo by zero",
    0x21: "enum overflow",
    0x22: "invalid encoded storage byte array accessed",
    0x31: "out-of-bounds array access; popping on an empty array",
    0x32: "out-of-bounds access of an array or bytesN",
    0x41: "out of memory",
    0x51: "uninitialized function",
}
"""Solidity's codes, in geth's words."""


class RpcError(Exception):
    """The chain refuses a request."""

    code = -32000

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def as_json(self) -> dict[str, Any]:
        return {"code": self.code, "message": self.message}


class ParseError(RpcError):
    """The body is no JSON."""

    code = -32700


class InvalidRequest(RpcError):
    """JSON, but no call."""

    code = -32600


class MethodNotFound(RpcError):
    """The chain has no such method."""

    code = -32601


class InvalidParams(RpcError):
    """Too few parameters, too many, or one that the method cannot use."""

    code = -32602


class InternalError(RpcError):
    """The chain has a fault; its process goes on."""

    code = -32603


class ExecutionReverted(RpcError):
    """The contract reverts: its bytes are the error's data."""

    code = 3

    def __init__(self, output: bytes) -> None:
        reason = _reason(output)
        super().__init__("execution reverted" + (f": {reason}" if reason else ""))
        self.data: HexStr = encode_hex(output)

    def as_json(self) -> dict[str, Any]:
        return super().as_json() | {"data": self.data}


def _reason(output: bytes) -> str:
    """The reason in a revert's bytes, where Solidity put one."""
    selector, arguments = output[:4], output[4:]
    try:
        if selector == ERROR_SELECTOR:
            return str(decode(["string"], arguments)[0])
        if selector == PANIC_SELECTOR:
            code = int(decode(["uint256"], arguments)[0])
            return PANICS.get(code, f"unknown panic code: {code:#x}")
    except (DecodingError, UnicodeDecodeError):
        pass
    return ""
