"""Any EVM chain: endpoints, fees, signed transactions, finality. Nothing here knows our contract.

Fees and balances are integers of wei.
"""
