// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {IInferenceEscrow} from "../src/interfaces/IInferenceEscrow.sol";
import {EscrowTest} from "./utils/EscrowTest.sol";

/// settle
/// ├── when the caller is not the operator: it reverts (Owner.t.sol)
/// ├── when the batch was settled before: it reverts, also with other figures
/// ├── when a debit is above its user's deposit: it reverts and names the user
/// │   └── also when the user's earlier debits in the batch used the deposit up
/// ├── when debits and credits plus fee differ: it reverts
/// │   └── also when their sum overflows
/// ├── when a provider is the zero address: it reverts
/// ├── when it reverts: it leaves the batch id unused and nothing moved
/// └── it takes the debits, gives the credits and the fee, and marks the batch
contract SettleTest is EscrowTest {
    uint256 private constant PANIC_OVERFLOW = 0x11;

    function test_Settle() external {
        _deposit(alice, 100);
        _deposit(bob, 50);

        _expectEmit();
        emit IInferenceEscrow.Debited(BATCH, alice, 60);
        _expectEmit();
        emit IInferenceEscrow.Debited(BATCH, bob, 50);
        _expectEmit();
        emit IInferenceEscrow.Credited(BATCH, gpu1, 70);
        _expectEmit();
        emit IInferenceEscrow.Credited(BATCH, gpu2, 30);
        _expectEmit();
        emit IInferenceEscrow.Credited(BATCH, treasury, 10);
        _expectEmit();
        emit IInferenceEscrow.BatchSettled(BATCH, 110, 100, 10);
        vm.prank(operator);
        escrow.settle(BATCH, _debits(alice, 60, bob, 50), _credits(gpu1, 70, gpu2, 30), 10);

        vm.assertEq(escrow.depositOf(alice), 40);
        vm.assertEq(escrow.depositOf(bob), 0);
        vm.assertEq(escrow.creditOf(gpu1), 70);
        vm.assertEq(escrow.creditOf(gpu2), 30);
        vm.assertEq(escrow.creditOf(treasury), 10);
        vm.assertEq(escrow.earnedOf(gpu1), 70);
        vm.assertEq(escrow.earnedOf(treasury), 10);
        vm.assertEq(escrow.totalDeposits(), 40);
        vm.assertEq(escrow.totalCredits(), 110);
        vm.assertTrue(escrow.batchSettled(BATCH));
    }

    function test_SameAccountMayAppearTwice() external {
        _deposit(alice, 100);
        vm.prank(operator);
        escrow.settle(BATCH, _debits(alice, 60, alice, 40), _credits(gpu1, 1, gpu1, 99), 0);
        vm.assertEq(escrow.depositOf(alice), 0);
        vm.assertEq(escrow.creditOf(gpu1), 100);
    }

    function testFuzz_Conserves(uint256 deposit, uint256 debit, uint256 credit) external {
        deposit = _bound(deposit, 1, FUNDS);
        debit = _bound(debit, 0, deposit);
        credit = _bound(credit, 0, debit);
        _deposit(alice, deposit);

        vm.prank(operator);
        escrow.settle(BATCH, _debits(alice, debit), _credits(gpu1, credit), debit - credit);

        vm.assertEq(escrow.depositOf(alice), deposit - debit);
        vm.assertEq(escrow.creditOf(gpu1) + escrow.creditOf(treasury), debit);
        vm.assertEq(escrow.totalDeposits() + escrow.totalCredits(), deposit);
    }

    function test_RevertWhen_BatchSettledBefore() external {
        _earn(BATCH, 10);
        _deposit(alice, 10);
        _expectAlreadySettled();
        vm.prank(operator);
        escrow.settle(BATCH, _debits(alice, 10), _credits(gpu1, 10), 0);

        _expectAlreadySettled();
        vm.prank(operator);
        escrow.settle(BATCH, _debits(alice, 3), _credits(gpu2, 2), 1);
    }

    function test_RevertWhen_DebitAboveDeposit() external {
        _deposit(alice, 100);
        _deposit(bob, 50);
        _expectInsufficient(bob, 50, 51);
        vm.prank(operator);
        escrow.settle(BATCH, _debits(alice, 49, bob, 51), _credits(gpu1, 100), 0);

        vm.assertEq(escrow.batchSettled(BATCH), false);
        vm.assertEq(escrow.depositOf(alice), 100);
    }

    function test_RevertWhen_DebitsOfOneUserAddUpAboveDeposit() external {
        _deposit(alice, 100);
        _expectInsufficient(alice, 40, 41);
        vm.prank(operator);
        escrow.settle(BATCH, _debits(alice, 60, alice, 41), _credits(gpu1, 101), 0);
    }

    function testFuzz_RevertWhen_Unbalanced(uint256 debit, uint256 credit, uint256 fee) external {
        debit = _bound(debit, 0, FUNDS);
        credit = _bound(credit, 0, FUNDS);
        fee = _bound(fee, 0, FUNDS);
        if (debit == credit + fee) ++fee;
        _deposit(alice, FUNDS);

        vm.expectRevert(
            abi.encodeWithSelector(
                IInferenceEscrow.InferenceEscrow_BatchUnbalanced.selector, debit, credit, fee
            )
        );
        vm.prank(operator);
        escrow.settle(BATCH, _debits(alice, debit), _credits(gpu1, credit), fee);
        vm.assertEq(escrow.batchSettled(BATCH), false);
    }

    function test_RevertWhen_SumOverflows() external {
        _deposit(alice, 1);
        vm.expectRevert(abi.encodeWithSignature("Panic(uint256)", PANIC_OVERFLOW));
        vm.prank(operator);
        escrow.settle(BATCH, _debits(alice, 1), _credits(gpu1, 2), type(uint256).max);
    }

    function test_RevertWhen_ProviderIsZero() external {
        _deposit(alice, 1);
        _expectRevert(IInferenceEscrow.InferenceEscrow_ZeroAddress.selector);
        vm.prank(operator);
        escrow.settle(BATCH, _debits(alice, 1), _credits(address(0), 1), 0);
    }

    function _expectAlreadySettled() private {
        vm.expectRevert(
            abi.encodeWithSelector(
                IInferenceEscrow.InferenceEscrow_BatchAlreadySettled.selector, BATCH
            )
        );
    }

    function _expectInsufficient(address user, uint256 left, uint256 debit) private {
        vm.expectRevert(
            abi.encodeWithSelector(
                IInferenceEscrow.InferenceEscrow_InsufficientDeposit.selector, user, left, debit
            )
        );
    }
}
