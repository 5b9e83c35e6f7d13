"""What a provider's wallet signs to register a node or to get weights: every fact that matters, and
a nonce."""

from eth_account import Account
from eth_account.messages import encode_defunct


def registration_message(
    *, wallet_address: str, model_id: str, start_layer: int, end_layer: int, edge: bool, nonce: str
) -> str:
    """The text to sign (EIP-191, as wallets show it to people)."""
    return (
        "Far Mesh node registration\n"
        f"Wallet: {wallet_address.lower()}\n"
        f"Model: {model_id}\n"
        f"Layers: {start_layer} to {end_layer} (end not included)\n"
        f"Edge: {'yes' if edge else 'no'}\n"
        f"Nonce: {nonce}"
    )


def weights_message(*, wallet_address: str, model_id: str, nonce: str) -> str:
    """The text that a wallet signs to be told where a model's weights are."""
    return f"Far Mesh weights\nWallet: {wallet_address.lower()}\nModel: {model_id}\nNonce: {nonce}"


def sign(message: str, private_key: bytes) -> str:
    """The signature as 0x-prefixed hex."""
    signed = Account.sign_message(encode_defunct(text=message), private_key=private_key)
    return "0x" + bytes(signed.signature).hex()


def signed_by(message: str, signature: str, wallet_address: str) -> bool:
    """Whether the wallet signed exactly this text."""
    try:
        signer = Account.recover_message(encode_defunct(text=message), signature=signature)
    except Exception:  # eth-account raises whatever its parsers raise on a stranger's bytes
        return False
    return str(signer).lower() == wallet_address.lower()
