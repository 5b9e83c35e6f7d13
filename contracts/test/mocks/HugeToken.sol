// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";

/// @notice Has more units than the escrow counts with.
contract HugeToken is ERC20("Huge", "HUGE") {
    constructor() {
        _mint(msg.sender, type(uint256).max);
    }
}
