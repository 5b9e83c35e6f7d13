// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {FarToken} from "../src/FarToken.sol";
import {InferenceEscrow} from "../src/InferenceEscrow.sol";
import {IInferenceEscrow} from "../src/interfaces/IInferenceEscrow.sol";
import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";

/// @notice What of forge's cheatcodes a script needs.
interface Vm {
    function envAddress(string calldata name) external view returns (address);
    function envOr(string calldata name, address otherwise) external view returns (address);
    function envOr(string calldata name, uint256 otherwise) external view returns (uint256);
    function startBroadcast() external;
    function stopBroadcast() external;
}

/// @notice Creates FarToken, unless FAR_TOKEN names an ERC-20 that is there, and InferenceEscrow.
///
///     FAR_ADMIN=0x... FAR_SETTLER=0x... FAR_PAUSER=0x... FAR_FEE_RECIPIENT=0x... \
///     node scripts/forge.mjs script script/Deploy.s.sol --rpc-url URL --keystore FILE \
///       --sender 0x... --broadcast
///
/// Of the terms, FAR_WITHDRAWAL_DELAY, FAR_DORMANCY, FAR_ADMIN_DELAY (seconds) and
/// FAR_DAILY_CEILING (base units) have the defaults below, which `far-mesh contracts deploy` shares.
contract Deploy {
    Vm private constant vm = Vm(address(uint160(uint256(keccak256("hevm cheat code")))));

    error Deploy_RolesNotApart();

    function run() external returns (IERC20 token, InferenceEscrow escrow) {
        IInferenceEscrow.Roles memory roles = IInferenceEscrow.Roles({
            admin: vm.envAddress("FAR_ADMIN"),
            adminDelay: _seconds(vm.envOr("FAR_ADMIN_DELAY", uint256(2 days))),
            settler: vm.envAddress("FAR_SETTLER"),
            pauser: vm.envAddress("FAR_PAUSER"),
            feeRecipient: vm.envAddress("FAR_FEE_RECIPIENT")
        });
        if (
            roles.admin == roles.settler || roles.admin == roles.pauser
                || roles.settler == roles.pauser
        ) revert Deploy_RolesNotApart();
        IInferenceEscrow.Terms memory terms = IInferenceEscrow.Terms({
            withdrawalDelay: vm.envOr("FAR_WITHDRAWAL_DELAY", uint256(1 days)),
            dormancy: vm.envOr("FAR_DORMANCY", uint256(14 days)),
            dailyCeiling: vm.envOr("FAR_DAILY_CEILING", uint256(1_000_000e18))
        });
        token = IERC20(vm.envOr("FAR_TOKEN", address(0)));

        vm.startBroadcast();
        if (address(token) == address(0)) token = new FarToken(msg.sender);
        escrow = new InferenceEscrow(token, terms, roles);
        vm.stopBroadcast();
    }

    function _seconds(uint256 time) private pure returns (uint48) {
        require(time <= type(uint48).max);
        // forge-lint: disable-next-line(unsafe-typecast)
        return uint48(time);
    }
}
