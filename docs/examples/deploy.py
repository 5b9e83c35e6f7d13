"""Deploy FarToken and InferenceEscrow from their committed artifacts.

The deployer's key is in an encrypted keystore; its password is asked for. The deployer receives the
token's whole supply, pays the gas, and has no rights on the escrow: those are the operator's.
"""

import argparse
import getpass
import os
from pathlib import Path

from eth_account.signers.local import LocalAccount
from web3 import Web3

from mesh.chain import artifact, unlock


def deploy(web3: Web3, deployer: LocalAccount, name: str, *arguments: str) -> str:
    """Create one contract; returns its address."""
    compiled = artifact(name)
    contract = web3.eth.contract(abi=compiled["abi"], bytecode=compiled["bytecode"])
    transaction = contract.constructor(*arguments).build_transaction(
        {"from": deployer.address, "nonce": web3.eth.get_transaction_count(deployer.address)}
    )
    signed = deployer.sign_transaction(transaction)
    sent = web3.eth.send_raw_transaction(signed.raw_transaction)
    receipt = web3.eth.wait_for_transaction_receipt(sent)
    address = receipt["contractAddress"]
    if receipt["status"] != 1 or address is None:
        raise SystemExit(f"Creating {name} failed: transaction {sent.to_0x_hex()}.")
    print(f"{name}  {address}  block {receipt['blockNumber']}")
    return address


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rpc", required=True, help="URL of the chain's JSON-RPC")
    parser.add_argument("--keyfile", type=Path, required=True, help="keystore of the deployer")
    parser.add_argument("--operator", required=True, help="address that settles; owns the escrow")
    parser.add_argument("--fee-recipient", required=True, help="address that the fees go to")
    parser.add_argument("--token", help="an ERC-20 that is there already, instead of FarToken")
    wanted = parser.parse_args()
    password = os.environ.get("DEPLOYER_PASSWORD") or getpass.getpass("Keystore password: ")
    deployer = unlock(wanted.keyfile, password)
    web3 = Web3(Web3.HTTPProvider(wanted.rpc))
    token = wanted.token or deploy(web3, deployer, "FarToken", deployer.address)
    deploy(web3, deployer, "InferenceEscrow", token, wanted.operator, wanted.fee_recipient)


if __name__ == "__main__":
    main()
