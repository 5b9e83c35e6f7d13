"""Prompts at rest."""

import pytest
from cryptography.exceptions import InvalidTag

from market.prompt_vault import PromptText, PromptVault

KEY = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="


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
