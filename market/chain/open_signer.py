"""The signer that the settings name: a keystore file or a KMS key. No setting holds a key."""

from market.chain.errors import ChainError
from market.chain.keystore_signer import KeystoreSigner
from market.chain.signer import Signer
from market.settings.payments import PaymentsSettings


def signer_configured(payments: PaymentsSettings) -> bool:
    """Whether the settings name a signer."""
    named = payments.kms_key_id if payments.signer == "kms" else payments.operator_keyfile
    return named is not None


async def open_signer(payments: PaymentsSettings) -> Signer:
    """The signer that the settings name.

    Raises:
        ChainError: they name none, or it cannot be opened.
    """
    if payments.signer == "kms" and payments.kms_key_id is not None:
        # Imported here: only operators who use KMS need boto3.
        from market.chain.kms_signer import KmsSigner  # noqa: PLC0415

        return await KmsSigner.open(payments.kms_key_id, region=payments.kms_region)
    if payments.signer == "keystore" and payments.operator_keyfile is not None:
        password = payments.operator_password.get_secret_value()
        return await KeystoreSigner.open(payments.operator_keyfile, password)
    raise ChainError(
        "No account to settle with is set (FAR_PAYMENTS__OPERATOR_KEYFILE, or "
        "FAR_PAYMENTS__SIGNER=kms and FAR_PAYMENTS__KMS_KEY_ID)."
    )
