"""The process that holds the node's DHT peer: `python -m node_runner.dht.peer_process`.

It reads commands from its standard input, a JSON object a line, so that no key stands in a list of
processes; and answers each line with one. The first line says where the DHT is. The input's end,
which also a killed node leaves behind, ends it.
"""

import asyncio
import json
import sys
from typing import Any

from mesh.dht import records
from mesh.dht.peer import Peer
from mesh.dht.signing_keys import SigningKey, public_from_hex


class ReopeningPeer:
    """A peer that is opened by the first command, and anew after one that reached nobody."""

    def __init__(self, operator: bytes, peers: list[str]) -> None:
        self._operator = operator
        self._peers = peers
        self._peer: Peer | None = None

    async def announce(self, command: dict[str, Any]) -> dict[str, Any]:
        """Put an announcement into the DHT; says how many peers have it."""
        announcement = records.Announcement(**command["announcement"])
        record = records.sign_announcement(
            SigningKey.from_hex(command["key"]), bytes.fromhex(command["credential"]), announcement
        )
        records.read_announcement(record, self._operator)  # else nobody would keep it
        stored = await (await self._opened()).store(
            records.announcements_key(announcement.model_id),
            announcement.node_id,
            record,
            announcement.expires,
        )
        if not stored:
            await self.close()
        return {"stored": stored}

    async def find(self, _: dict[str, Any]) -> dict[str, Any]:
        """The platform's URLs, as the operator signed them."""
        found = await (await self._opened()).read(records.ENDPOINTS_KEY)
        endpoints = found.get(records.ENDPOINTS_SUBKEY)
        if endpoints is None:
            return {"urls": []}
        return {"urls": records.read_endpoints(endpoints, self._operator).urls}

    async def close(self) -> None:
        """Close the peer; the next command opens another."""
        peer, self._peer = self._peer, None
        if peer is not None:
            await peer.close()

    async def _opened(self) -> Peer:
        if self._peer is None:
            self._peer = await Peer.join(self._operator, self._peers)
        return self._peer


async def serve() -> None:
    """Carry out one command after the other until there are no more."""
    loop = asyncio.get_running_loop()
    endpoint = json.loads(await loop.run_in_executor(None, sys.stdin.readline))
    peer = ReopeningPeer(public_from_hex(endpoint["operator_key"]), endpoint["peers"])
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        command = json.loads(line)
        carry_out = peer.find if command["do"] == "find" else peer.announce
        try:
            answer = await carry_out(command)
        except Exception as error:  # hivemind raises whatever happens to it
            answer = {"failed": f"{type(error).__name__}: {error}"}
            await peer.close()
        print(json.dumps(answer), flush=True)
    await peer.close()


if __name__ == "__main__":
    asyncio.run(serve())
