// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {InferenceEscrow} from "../src/InferenceEscrow.sol";
import {IInferenceEscrow} from "../src/interfaces/IInferenceEscrow.sol";
import {CallbackToken} from "./mocks/CallbackToken.sol";
import {FeeToken} from "./mocks/FeeToken.sol";
import {EscrowTest} from "./utils/EscrowTest.sol";
import {ReentrancyGuard} from "@openzeppelin/contracts/utils/ReentrancyGuard.sol";

/// deposit, depositFor
/// ├── when the amount is zero: it reverts
/// ├── when the user is the zero address: it reverts
/// ├── when the token takes a fee on transfer: it reverts
/// ├── when the token calls back into the escrow: it reverts
/// ├── when tokens were sent to the escrow unasked: it counts only its own
/// └── it adds to the user's deposit, whoever pays
contract DepositTest is EscrowTest {
    function testFuzz_Deposit(uint256 first, uint256 second) external {
        first = _bound(first, 1, FUNDS - 1);
        second = _bound(second, 1, FUNDS - first);

        _expectEmit();
        emit IInferenceEscrow.Deposited(alice, alice, first);
        _deposit(alice, first);
        _deposit(alice, second);

        vm.assertEq(escrow.depositOf(alice), first + second);
        vm.assertEq(escrow.totalDeposits(), first + second);
        vm.assertEq(far.balanceOf(address(escrow)), first + second);
    }

    function test_DepositFor() external {
        _expectEmit();
        emit IInferenceEscrow.Deposited(alice, bob, 5e18);
        vm.prank(alice);
        escrow.depositFor(bob, 5e18);

        vm.assertEq(escrow.depositOf(bob), 5e18);
        vm.assertEq(escrow.depositOf(alice), 0);
        vm.assertEq(far.balanceOf(alice), FUNDS - 5e18);
    }

    function test_IgnoresTokensSentUnasked() external {
        vm.prank(bob);
        require(far.transfer(address(escrow), 7e18));
        _deposit(alice, 5e18);
        vm.assertEq(escrow.depositOf(alice), 5e18);
        vm.assertEq(escrow.totalDeposits(), 5e18);
    }

    function test_RevertWhen_AmountIsZero() external {
        _expectRevert(IInferenceEscrow.InferenceEscrow_ZeroAmount.selector);
        _deposit(alice, 0);
    }

    function test_RevertWhen_UserIsZero() external {
        _expectRevert(IInferenceEscrow.InferenceEscrow_ZeroAddress.selector);
        vm.prank(alice);
        escrow.depositFor(address(0), 1);
    }

    function test_RevertWhen_TokenTakesFee() external {
        FeeToken token = new FeeToken();
        InferenceEscrow feeEscrow = _deploy(token);
        token.approve(address(feeEscrow), 100);
        vm.expectRevert(
            abi.encodeWithSelector(
                IInferenceEscrow.InferenceEscrow_InexactTransfer.selector, 100, 99
            )
        );
        feeEscrow.deposit(100);
    }

    function test_RevertWhen_TokenReenters() external {
        CallbackToken token = new CallbackToken();
        InferenceEscrow target = _deploy(token);
        token.approve(address(target), 100);
        token.callback(address(target), abi.encodeCall(target.deposit, (1)));
        _expectRevert(ReentrancyGuard.ReentrancyGuardReentrantCall.selector);
        target.deposit(100);
    }
}
