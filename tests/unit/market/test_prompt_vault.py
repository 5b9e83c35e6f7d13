"""Prompts at rest."""

import base64
import os

import pytest
from cryptography.exceptions import InvalidTag

from market.prompt_vault import KEY_ID_BYTES, PromptText, PromptVault

KEY = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
PROMPT = PromptText([1, 2, 300_000], ["stop"])
PLAINTEXT = PROMPT.to_bytes()


def new_key() -> str:
    return base64.b64encode(os.urandom(32)).decode()


def test_a_prompt_is_decrypted_only_for_its_own_job_and_key() -> None:
    vault = PromptVault(KEY)
    ciphertext = vault.encrypt("req_1", PLAINTEXT)
    assert PromptText.from_bytes(vault.decrypt("req_1", ciphertext)) == PROMPT
    assert vault.encrypt("req_1", PLAINTEXT) != ciphertext
    with pytest.raises(InvalidTag):
        vault.decrypt("req_2", ciphertext)
    with pytest.raises(InvalidTag):
        PromptVault(KEY.replace("A", "B", 1)).decrypt("req_1", ciphertext)
    for place in (0, KEY_ID_BYTES, -1):
        changed = bytearray(ciphertext)
        changed[place] ^= 1
        with pytest.raises(InvalidTag):
            vault.decrypt("req_1", bytes(changed))
    for length in range(len(ciphertext)):
        with pytest.raises(InvalidTag):
            vault.decrypt("req_1", ciphertext[:length])


def test_a_key_is_replaced_while_jobs_run() -> None:
    old, new = new_key(), new_key()
    before = PromptVault(old).encrypt("req_1", PLAINTEXT)
    both = PromptVault(f"{new}, {old}")
    assert both.decrypt("req_1", before) == PLAINTEXT
    written = both.encrypt("req_2", PLAINTEXT)
    assert PromptVault(new).decrypt("req_2", written) == PLAINTEXT
    with pytest.raises(InvalidTag):
        PromptVault(old).decrypt("req_2", written)
    with pytest.raises(InvalidTag):
        PromptVault(new).decrypt("req_1", before)
    # A request that is repeated after the change is the same request.
    [earlier] = PromptVault(old).digests(b"request")
    assert earlier in both.digests(b"request")
    assert both.digests(b"request")[0] == PromptVault(new).digests(b"request")[0]


def test_no_key_is_used_for_two_purposes() -> None:
    """Nor is the secret itself a key."""
    vault = PromptVault(KEY)
    ciphertext = vault.encrypt("req_1", PLAINTEXT)
    [digest] = vault.digests(b"")
    [prefix] = vault.prefix("0x12", list(range(33)))
    known = {ciphertext[:KEY_ID_BYTES], digest[:KEY_ID_BYTES], prefix[:KEY_ID_BYTES]}
    assert len(known) == 3


@pytest.mark.parametrize("keys", ["", "AAAA", "not base64!", f"{KEY},", f"{KEY},AAAA"])
def test_a_key_of_the_wrong_size_is_refused(keys: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - base64's own error, or ours
        PromptVault(keys)
