"""Any chain: endpoints, fees, signers. Nothing here knows our contract.

All amounts are integer base units of FAR, all fees integer wei.
"""
