// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {FarToken} from "../src/FarToken.sol";
import {Test} from "./utils/Test.sol";
import {ERC20Permit} from "@openzeppelin/contracts/token/ERC20/extensions/ERC20Permit.sol";

/// constructor
/// ├── it has the name, symbol and decimals that wallets show
/// └── it mints the whole supply to the holder
/// permit
/// ├── when the owner signed: it sets the allowance
/// ├── when somebody else signed: it reverts
/// └── when the signature is used again: it reverts
contract FarTokenTest is Test {
    uint256 private constant KEY = 0xA11CE;

    bytes32 private constant PERMIT = keccak256(
        "Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)"
    );

    address private holder = _account("holder");
    address private spender = _account("spender");
    address private alice = vm.addr(KEY);
    FarToken private far = new FarToken(holder);

    function test_Metadata() external view {
        vm.assertEq(far.name(), "Far");
        vm.assertEq(far.symbol(), "FAR");
        vm.assertEq(far.decimals(), 18);
    }

    function test_MintsWholeSupplyToHolder() external view {
        vm.assertEq(far.totalSupply(), 1_000_000_000 * 10 ** 18);
        vm.assertEq(far.balanceOf(holder), far.totalSupply());
    }

    function testFuzz_Permit(uint256 amount) external {
        (uint8 v, bytes32 r, bytes32 s) = _signPermit(KEY, amount);
        far.permit(alice, spender, amount, block.timestamp, v, r, s);
        vm.assertEq(far.allowance(alice, spender), amount);
    }

    function test_RevertWhen_PermitSignedByAnother() external {
        uint256 otherKey = 0xB0B;
        (uint8 v, bytes32 r, bytes32 s) = _signPermit(otherKey, 1);
        vm.expectRevert(
            abi.encodeWithSelector(
                ERC20Permit.ERC2612InvalidSigner.selector, vm.addr(otherKey), alice
            )
        );
        far.permit(alice, spender, 1, block.timestamp, v, r, s);
    }

    function test_RevertWhen_PermitUsedTwice() external {
        (uint8 v, bytes32 r, bytes32 s) = _signPermit(KEY, 1);
        far.permit(alice, spender, 1, block.timestamp, v, r, s);

        bool accepted = true;
        try far.permit(alice, spender, 1, block.timestamp, v, r, s) {}
        catch {
            accepted = false;
        }
        vm.assertEq(accepted, false);
    }

    function _signPermit(uint256 key, uint256 amount)
        private
        view
        returns (uint8 v, bytes32 r, bytes32 s)
    {
        bytes32 permit = keccak256(
            abi.encode(PERMIT, alice, spender, amount, far.nonces(alice), block.timestamp)
        );
        return vm.sign(key, keccak256(abi.encodePacked("\x19\x01", far.DOMAIN_SEPARATOR(), permit)));
    }
}
