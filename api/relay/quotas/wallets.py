"""Whose nodes are: wallets by node, remembered, since a node never changes its owner."""

from collections import OrderedDict

from market.db import Sessions
from market.nodes.registered_node import wallet_of
from market.outages import OUTAGES

MAX_NODES = 10_000


class NodeWallets:
    """Remembers, for its process, the wallets of the nodes that it has served lately."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self._wallets: OrderedDict[str, str] = OrderedDict()

    async def find(self, node_id: str) -> str:
        """The wallet of a node; the node's id for the moment, if Postgres does not answer or does
        not know the node."""
        wallet = self._wallets.get(node_id)
        if wallet is None:
            try:
                async with self._sessions() as db:
                    wallet = await wallet_of(db, node_id)
            except OUTAGES:
                return node_id
            if wallet is None:
                return node_id
            self._wallets[node_id] = wallet
            if len(self._wallets) > MAX_NODES:
                self._wallets.popitem(last=False)
        return wallet
