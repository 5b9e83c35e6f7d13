"""Small parts: settings, prompts at rest, proofs of a wallet, errors."""

from decimal import Decimal
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidTag
from eth_account import Account
from pydantic import ValidationError

from market.prompt_vault import PromptText, PromptVault
from market.settings import Settings
from mesh import signed_texts
from mesh.errors import MeshError, __doc__

KEY = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="


def test_settings_come_from_yaml_and_the_environment_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "far_mesh.yaml"
    file.write_text(
        "models: [{id: m, payment_per_token: 0.0001, min_nodes: 3}]\n"
        "payments: {release_delay: 3600, platform_fee: '0.02'}\n"
    )
    monkeypatch.setenv("FAR_CONFIG", str(file))
    monkeypatch.setenv("FAR_PAYMENTS__RELEASE_DELAY", "60")
    settings = Settings()
    assert settings.models[0].payment_per_token == Decimal("0.0001")
    assert settings.models[0].min_nodes == 3
    assert settings.payments.release_delay == 60
    assert settings.payments.platform_fee == Decimal("0.02")


def test_a_setting_out_of_range_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAR_PAYMENTS__PLATFORM_FEE", "1.5")
    with pytest.raises(ValidationError, match="platform_fee"):
        Settings()


def test_the_committed_configuration_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    committed = Path(__file__).parents[3] / "config" / "far_mesh.yaml"
    monkeypatch.setenv("FAR_CONFIG", str(committed))
    assert [model.id for model in Settings().models] == ["far/pydoc-llama"]


def test_a_prompt_is_decrypted_only_for_its_own_job_and_key() -> None:
    vault = PromptVault(KEY)
    prompt = PromptText([1, 2, 300_000], ["stop"])
    ciphertext = vault.encrypt("req_1", prompt)
    assert vault.decrypt("req_1", ciphertext) == prompt
    assert vault.encrypt("req_1", prompt) != ciphertext
    with pytest.raises(InvalidTag):
        vault.decrypt("req_2", ciphertext)
    with pytest.raises(InvalidTag):
        PromptVault(KEY.replace("A", "B", 1)).decrypt("req_1", ciphertext)
    with pytest.raises(InvalidTag):
        vault.decrypt("req_1", ciphertext[:-1] + bytes([ciphertext[-1] ^ 1]))


@pytest.mark.parametrize("key", ["", "AAAA", "not base64!"])
def test_a_key_of_the_wrong_size_is_refused(key: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - base64's own error, or ours
        PromptVault(key)


def test_a_registration_is_signed_by_its_wallet_and_for_its_span() -> None:
    wallet = Account.create()
    facts = {"wallet_address": wallet.address, "model_id": "m", "edge": False, "nonce": "n"}
    message = signed_texts.registration_message(start_layer=0, end_layer=4, **facts)
    signature = signed_texts.sign(message, wallet.key)
    assert signed_texts.signed_by(message, signature, wallet.address)
    assert signed_texts.signed_by(message, signature, wallet.address.lower())
    wider = signed_texts.registration_message(start_layer=0, end_layer=5, **facts)
    assert not signed_texts.signed_by(wider, signature, wallet.address)
    assert not signed_texts.signed_by(message, signature, Account.create().address)
    assert not signed_texts.signed_by(message, "0x12", wallet.address)


def _tree(root: type[MeshError]) -> list[type[MeshError]]:
    return [root, *(found for child in root.__subclasses__() for found in _tree(child))]


def test_every_error_has_a_code_of_its_own_and_is_in_the_drawn_tree() -> None:
    classes = _tree(MeshError)
    codes = [error.code for error in classes]
    assert len(set(codes)) == len(codes)
    for error in classes:
        assert error.__name__ in (__doc__ or "")
        assert error.status >= 400
