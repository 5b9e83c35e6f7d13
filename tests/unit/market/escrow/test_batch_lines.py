"""How a batch's lines are packed."""

import pytest

from market.escrow.batch_lines import pack_line, pack_lines, unpack_line

WALLET = "0xf39fd6e51aad88f6f4ce6ab8827279cfffb92266"
OTHER = "0x00000000000000000000000000000000000000ab"


@pytest.mark.parametrize("units", [0, 1, 10**18, 2**96 - 1])
def test_a_line_is_an_account_and_an_amount(units: int) -> None:
    line = pack_line(WALLET, units)
    assert line.hex() == WALLET[2:] + f"{units:024x}"
    account, amount = unpack_line(line)
    assert (account.lower(), amount) == (WALLET, units)


def test_lines_are_in_the_order_of_their_accounts() -> None:
    lines = pack_lines({WALLET: 1, OTHER: 2})
    assert lines == [pack_line(OTHER, 2), pack_line(WALLET, 1)]


@pytest.mark.parametrize(
    ("wallet", "units"), [(WALLET, 2**96), (WALLET, -1), (WALLET[:-2], 1), ("alice", 1)]
)
def test_what_does_not_fit_is_refused(wallet: str, units: int) -> None:
    with pytest.raises(ValueError, match=r"no address|do not fit"):
        pack_line(wallet, units)
