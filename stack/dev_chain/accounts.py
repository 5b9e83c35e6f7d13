"""The accounts of development chains, whose keys everybody knows."""

from functools import cache

from eth_account import Account
from eth_account.signers.local import LocalAccount

MNEMONIC = "test test test test test test test test test test test junk"
"""The public mnemonic of development chains such as anvil, on which its accounts are rich."""

COUNT = 10
"""Accounts that have coins from the first block on."""

BALANCE = 10**24
"""Wei that each of them begins with."""


@cache
def account(index: int) -> LocalAccount:
    """The mnemonic's account at m/44'/60'/0'/0/``index``."""
    Account.enable_unaudited_hdwallet_features()
    derived: LocalAccount = Account.from_mnemonic(MNEMONIC, account_path=f"m/44'/60'/0'/0/{index}")
    return derived
