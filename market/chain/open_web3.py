"""Makes every client of web3's, so that none refuses a block of the chain.

web3 takes at most 32 bytes of ``extraData`` for valid. On a proof-of-authority chain the block's
signatures are there: 97 bytes by EIP-225, and 278 or more on BSC.
"""

from typing import Any

from web3 import AsyncBaseProvider, AsyncWeb3, BaseProvider, HTTPProvider, Web3
from web3.middleware import ExtraDataToPOAMiddleware


def open_async_web3(provider: AsyncBaseProvider) -> AsyncWeb3[Any]:
    """A client of any chain."""
    web3 = AsyncWeb3(provider)
    web3.middleware_onion.inject(ExtraDataToPOAMiddleware, layer=0)
    return web3


def open_web3(chain: BaseProvider | str) -> Web3:
    """A client of any chain that blocks the thread, for commands and examples.

    Args:
        chain: A provider, or the URL of a JSON-RPC endpoint.
    """
    web3 = Web3(HTTPProvider(chain) if isinstance(chain, str) else chain)
    web3.middleware_onion.inject(ExtraDataToPOAMiddleware, layer=0)
    return web3
