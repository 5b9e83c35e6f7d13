// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";
import {ERC20Permit} from "@openzeppelin/contracts/token/ERC20/extensions/ERC20Permit.sol";

/// @title FarToken
/// @notice $FAR, in which inference is paid. The supply is minted once and never changes.
contract FarToken is ERC20, ERC20Permit {
    /// @notice One billion FAR, in base units of 1e-18 FAR.
    uint256 public constant SUPPLY = 1_000_000_000e18;

    /// @param holder receives the whole supply
    constructor(address holder) ERC20("Far", "FAR") ERC20Permit("Far") {
        _mint(holder, SUPPLY);
    }
}
