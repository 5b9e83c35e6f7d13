"""A development chain: py-evm behind JSON-RPC, for machines on which anvil is not installed.

It answers as geth does, so that wallets and libraries need no special case. Every block holds one
transaction and is final at once; nothing is kept when the process stops.

    python -m stack.dev_chain --port 8545
"""
