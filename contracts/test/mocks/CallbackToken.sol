// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";

/// @notice Calls a contract of the holder's choice during every transfer, as ERC-777 would, or
/// sends more along.
contract CallbackToken is ERC20("Callback", "CALL") {
    address private _target;
    bytes private _data;
    address private _gifted;
    uint256 private _gift;

    constructor() {
        _mint(msg.sender, 1000e18);
    }

    function callback(address target, bytes calldata data) external {
        _target = target;
        _data = data;
    }

    function giftWithNextTransfer(address to, uint256 amount) external {
        _gifted = to;
        _gift = amount;
    }

    function _update(address from, address to, uint256 amount) internal override {
        super._update(from, to, amount);
        if (_gift != 0) {
            super._update(address(0), _gifted, _gift);
            _gift = 0;
        }
        if (_target == address(0)) return;
        (bool ok, bytes memory reason) = _target.call(_data);
        if (!ok) {
            assembly ("memory-safe") {
                revert(add(reason, 0x20), mload(reason))
            }
        }
    }
}
