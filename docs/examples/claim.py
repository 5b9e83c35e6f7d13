"""Claim what the escrow owes a wallet: a provider's earnings, or a user's refund.

The wallet's key is in an encrypted keystore; its password is asked for. The wallet pays the gas.
"""

import argparse
import getpass
import os
from pathlib import Path

from web3 import Web3
from web3.middleware import ExtraDataToPOAMiddleware

from market.chain.keystore_signer import unlock_keystore
from market.escrow.artifacts import artifact
from market.money import format_exact, from_units


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rpc", required=True, help="URL of the chain's JSON-RPC")
    parser.add_argument("--escrow", required=True, help="address of the InferenceEscrow")
    parser.add_argument("--keyfile", type=Path, required=True, help="keystore of the wallet")
    parser.add_argument("--to", help="address that receives the FAR; the wallet itself by default")
    wanted = parser.parse_args()
    password = os.environ.get("FAR_NODE_PASSWORD") or getpass.getpass("Keystore password: ")
    wallet = unlock_keystore(wanted.keyfile, password)
    web3 = Web3(Web3.HTTPProvider(wanted.rpc))
    web3.middleware_onion.inject(ExtraDataToPOAMiddleware, layer=0)  # BSC's blocks
    escrow = web3.eth.contract(
        address=Web3.to_checksum_address(wanted.escrow), abi=artifact("InferenceEscrow")["abi"]
    )
    credit = escrow.functions.creditOf(wallet.address).call()
    if not credit:
        raise SystemExit(f"There is nothing to claim for {wallet.address}.")
    if not web3.eth.get_balance(wallet.address):
        raise SystemExit(f"{wallet.address} has no coins for gas.")
    transaction = escrow.functions.claimTo(wanted.to or wallet.address).build_transaction(
        {"from": wallet.address, "nonce": web3.eth.get_transaction_count(wallet.address)}
    )
    sent = web3.eth.send_raw_transaction(wallet.sign_transaction(transaction).raw_transaction)
    if web3.eth.wait_for_transaction_receipt(sent)["status"] != 1:
        raise SystemExit(f"The claim was reverted: transaction {sent.to_0x_hex()}.")
    print(f"Claimed {format_exact(from_units(credit))} FAR: transaction {sent.to_0x_hex()}")


if __name__ == "__main__":
    main()
