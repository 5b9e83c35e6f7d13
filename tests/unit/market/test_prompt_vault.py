"""Prompts at rest."""

import pytest
from cryptography.exceptions import InvalidTag

from market.prompt_vault import PromptText, PromptVault

KEY = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="


def test_a_sealed_prompt_opens_only_for_its_own_job_and_key() -> None:
    vault = PromptVault(KEY)
    prompt = PromptText([1, 2, 300_000], ["stop"])
    sealed = vault.seal("req_1", prompt)
    assert vault.open("req_1", sealed) == prompt
    assert vault.seal("req_1", prompt) != sealed
    with pytest.raises(InvalidTag):
        vault.open("req_2", sealed)
    with pytest.raises(InvalidTag):
        PromptVault(KEY.replace("A", "B", 1)).open("req_1", sealed)
    with pytest.raises(InvalidTag):
        vault.open("req_1", sealed[:-1] + bytes([sealed[-1] ^ 1]))


@pytest.mark.parametrize("key", ["", "AAAA", "not base64!"])
def test_a_key_of_the_wrong_size_is_refused(key: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - base64's own error, or ours
        PromptVault(key)
