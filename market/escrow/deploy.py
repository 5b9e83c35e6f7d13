"""Creates the contracts on any chain, from the committed artifacts: no compiler, no Node."""

from dataclasses import dataclass
from typing import Any

from eth_account.signers.local import LocalAccount
from web3 import Web3

from market.escrow.artifacts import artifact
from market.settings.deployment import Deployment

DAY = 24 * 3600


@dataclass(frozen=True, slots=True)
class Terms:
    """The escrow's terms: seconds, and base units of FAR. Only the ceiling can change later."""

    withdrawal_delay: int = 1 * DAY
    dormancy: int = 14 * DAY
    daily_ceiling: int = 1_000_000 * 10**18


@dataclass(frozen=True, slots=True)
class Roles:
    """Who may do what at first; see IInferenceEscrow.

    Raises:
        ValueError: two of admin, settler and pauser are one account. A thief of that one key would
            hold what is meant to bound him.
    """

    admin: str
    settler: str
    pauser: str
    fee_recipient: str
    admin_delay: int = 2 * DAY

    def __post_init__(self) -> None:
        if len({name.lower() for name in (self.admin, self.settler, self.pauser)}) < 3:
            raise ValueError("Admin, settler and pauser have to be three accounts.")


def deploy(
    web3: Web3, deployer: LocalAccount, *, terms: Terms, roles: Roles, token: str | None = None
) -> Deployment:
    """Create FarToken, unless ``token`` names an ERC-20 that is there, and InferenceEscrow.

    The deployer pays the gas, receives the supply of a new token, and has no rights on the escrow.

    Raises:
        RuntimeError: a transaction was reverted.
    """
    if token is None:
        token, _ = _create(web3, deployer, "FarToken", deployer.address)
    escrow, block = _create(
        web3,
        deployer,
        "InferenceEscrow",
        Web3.to_checksum_address(token),
        (terms.withdrawal_delay, terms.dormancy, terms.daily_ceiling),
        (
            Web3.to_checksum_address(roles.admin),
            roles.admin_delay,
            Web3.to_checksum_address(roles.settler),
            Web3.to_checksum_address(roles.pauser),
            Web3.to_checksum_address(roles.fee_recipient),
        ),
    )
    return Deployment(token=token, escrow=escrow, chain_id=web3.eth.chain_id, block=block)


def _create(web3: Web3, deployer: LocalAccount, name: str, *arguments: Any) -> tuple[str, int]:
    compiled = artifact(name)
    factory = web3.eth.contract(abi=compiled["abi"], bytecode=compiled["bytecode"])
    fields = factory.constructor(*arguments).build_transaction(
        {
            "from": deployer.address,
            "nonce": web3.eth.get_transaction_count(deployer.address),
            "chainId": web3.eth.chain_id,
        }
    )
    sent = web3.eth.send_raw_transaction(deployer.sign_transaction(fields).raw_transaction)
    receipt = web3.eth.wait_for_transaction_receipt(sent, poll_latency=0.05)
    address = receipt["contractAddress"]
    if receipt["status"] != 1 or address is None:
        raise RuntimeError(f"Creating {name} was reverted: transaction {sent.to_0x_hex()}.")
    return str(address), int(receipt["blockNumber"])
