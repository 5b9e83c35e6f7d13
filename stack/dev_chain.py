"""A development chain: eth-tester (py-evm) behind a small JSON-RPC server.

For machines on which anvil is not installed. Every block holds one transaction and is final at
once; nothing is kept when the process stops.

    python -m stack.dev_chain --port 8545
"""

import argparse
import ast
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from eth_tester import EthereumTester, PyEVMBackend
from eth_tester.exceptions import TransactionFailed
from web3 import EthereumTesterProvider, Web3

MNEMONIC = "test test test test test test test test test test test junk"
"""The public mnemonic of development chains such as anvil, on which its accounts are rich."""

CHAIN_ERROR = -32000
"""JSON-RPC error code of a node that refuses (EIP-1474)."""

REVERTED = 3
"""JSON-RPC error code of a call that reverts, with the revert's bytes as data, as geth has it."""


class DevChain:
    """Executes JSON-RPC requests, one at a time."""

    def __init__(self) -> None:
        tester = EthereumTester(
            PyEVMBackend.from_mnemonic(MNEMONIC, num_accounts=10, hd_path="m/44'/60'/0'/0")
        )
        self._web3 = Web3(EthereumTesterProvider(tester))
        provider = self._web3.provider
        self._request = provider.request_func(self._web3, self._web3.middleware_onion)
        self._lock = threading.Lock()

    def call(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to one JSON-RPC request."""
        envelope = {"jsonrpc": "2.0", "id": request.get("id")}
        try:
            with self._lock:
                answer = self._request(request["method"], request.get("params") or [])
        except TransactionFailed as error:
            return envelope | {"error": _revert(error)}
        except Exception as error:  # py-evm and eth-tester share no base class
            return envelope | {"error": {"code": CHAIN_ERROR, "message": str(error)}}
        if "error" in answer:
            return envelope | {"error": answer["error"]}
        return envelope | {"result": _as_json(answer["result"])}


def serve(port: int) -> ThreadingHTTPServer:
    """A server on the loopback address, which begins with its `serve_forever`."""
    chain = DevChain()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            answer = (
                [chain.call(call) for call in body] if isinstance(body, list) else chain.call(body)
            )
            encoded = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(encoded)))
            self.end_headers()
            self.wfile.write(encoded)

        def log_message(self, *_: object) -> None:
            """Logs nothing: a line for each call helps nobody."""

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    return server


def _revert(error: TransactionFailed) -> dict[str, Any]:
    """A revert as a JSON-RPC error. web3 wraps eth-tester's exception, which wraps py-evm's, whose
    argument is the revert's bytes, or for a call the repr of those bytes."""
    cause: Any = error.__context__ or error
    while isinstance(cause, Exception):
        cause = cause.args[0] if cause.args else b""
    if isinstance(cause, str) and cause.startswith(("b'", 'b"')):
        cause = ast.literal_eval(cause)
    if not isinstance(cause, bytes):
        return {"code": CHAIN_ERROR, "message": str(error)}
    return {"code": REVERTED, "message": "execution reverted", "data": "0x" + cause.hex()}


def _as_json(value: Any) -> Any:
    """Python values as JSON-RPC writes them: quantities and data in hex."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return value
    if isinstance(value, int):
        return hex(value)
    if isinstance(value, bytes):
        return "0x" + value.hex()
    if hasattr(value, "items"):
        return {key: _as_json(item) for key, item in value.items()}
    return [_as_json(item) for item in value]


def main() -> None:
    parser = argparse.ArgumentParser(description="Development chain with a JSON-RPC port.")
    parser.add_argument("--port", type=int, default=8545)
    serve(parser.parse_args().port).serve_forever()


if __name__ == "__main__":
    main()
