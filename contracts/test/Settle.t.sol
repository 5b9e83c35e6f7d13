// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {IInferenceEscrow} from "../src/interfaces/IInferenceEscrow.sol";
import {EscrowTest} from "./utils/EscrowTest.sol";

contract SettleTest is EscrowTest {
    uint256 private constant PANIC_OVERFLOW = 0x11;

    function test_Settle() external {
        _prepay(alice, 100);
        _prepay(bob, 50);
        IInferenceEscrow.Line[] memory debits = _debits(alice, 60, bob, 50);
        IInferenceEscrow.Line[] memory credits = _credits(gpu1, 70, gpu2, 30);
        vm.warp(START + 5);

        _expectEmit();
        emit IInferenceEscrow.BatchLines(BATCH, debits, credits);
        _expectEmit();
        emit IInferenceEscrow.FeeCredited(BATCH, treasury, 10);
        _expectEmit();
        emit IInferenceEscrow.BatchSettled(BATCH, ROOT, 110, 100, 10);
        _settle(BATCH, debits, credits, 10);

        vm.assertEq(escrow.depositOf(alice), 40);
        vm.assertEq(escrow.depositOf(bob), 0);
        _assertCap(alice, 100, 60);
        _assertCap(bob, 50, 50);
        vm.assertEq(escrow.creditOf(gpu1), 70);
        vm.assertEq(escrow.creditOf(gpu2), 30);
        vm.assertEq(escrow.creditOf(treasury), 10);
        vm.assertEq(escrow.earnedOf(gpu1), 70);
        vm.assertEq(escrow.earnedOf(treasury), 10);
        vm.assertEq(escrow.totalDeposits(), 40);
        vm.assertEq(escrow.totalCredits(), 110);
        vm.assertTrue(escrow.batchSettled(BATCH));
        vm.assertEq(escrow.usageRootOf(BATCH), ROOT);
        vm.assertEq(escrow.lastSettledAt(), START + 5);
        vm.assertEq(escrow.leftToday(), CEILING - 110);
    }

    function test_CreditsAddUp() external {
        _earn("batch 1", 30);
        _earn("batch 2", 12);
        vm.assertEq(escrow.creditOf(gpu1), 42);
        vm.assertEq(escrow.earnedOf(gpu1), 42);
        vm.assertEq(escrow.totalCredits(), 42);
    }

    function test_SameAccountMayAppearTwice() external {
        _prepay(alice, 100);
        _settle(BATCH, _debits(alice, 60, alice, 40), _credits(gpu1, 1, gpu1, 99), 0);
        vm.assertEq(escrow.depositOf(alice), 0);
        vm.assertEq(escrow.creditOf(gpu1), 100);
        _assertCap(alice, 100, 100);
    }

    function test_NothingIsDebited() external {
        IInferenceEscrow.Line[] memory debits = _none();
        IInferenceEscrow.Line[] memory credits = _none();
        _expectEmit();
        emit IInferenceEscrow.BatchLines(BATCH, debits, credits);
        _expectEmit();
        emit IInferenceEscrow.BatchSettled(BATCH, ROOT, 0, 0, 0);
        _settle(BATCH, debits, credits, 0);
        vm.assertTrue(escrow.batchSettled(BATCH));
        vm.assertEq(escrow.batchSettled("another"), false);
    }

    function test_WithoutFeeReportsNone() external {
        _prepay(alice, 1);
        vm.recordLogs();
        _settle(BATCH, _debits(alice, 1), _credits(gpu1, 1), 0);
        vm.assertEq(vm.getRecordedLogs().length, 2);
        vm.assertEq(escrow.creditOf(treasury), 0);
    }

    function test_DebitsWhatWaitsToBeWithdrawn() external {
        _prepay(alice, 100);
        vm.prank(alice);
        escrow.requestWithdrawal(100);
        vm.warp(START + WITHDRAWAL_DELAY);
        _settle(BATCH, _debits(alice, 100), _credits(gpu1, 100), 0);
        vm.assertEq(escrow.creditOf(gpu1), 100);
    }

    function testFuzz_Conserves(uint256 deposit, uint256 debit, uint256 credit) external {
        deposit = _bound(deposit, 1, FUNDS);
        debit = _bound(debit, 0, deposit);
        credit = _bound(credit, 0, debit);
        _prepay(alice, deposit);
        _settle(BATCH, _debits(alice, debit), _credits(gpu1, credit), debit - credit);

        vm.assertEq(escrow.depositOf(alice), deposit - debit);
        vm.assertEq(escrow.creditOf(gpu1) + escrow.creditOf(treasury), debit);
        vm.assertEq(escrow.earnedOf(gpu1) + escrow.earnedOf(treasury), debit);
        vm.assertEq(escrow.totalDeposits() + escrow.totalCredits(), deposit);
        _assertCap(alice, deposit, debit);
    }

    function testFuzz_NeverAboveTheCap(uint256 cap, uint256 first, uint256 second) external {
        cap = _bound(cap, 1, FUNDS - 1);
        first = _bound(first, 0, cap);
        second = _bound(second, cap - first + 1, FUNDS - first);
        _deposit(alice, FUNDS);
        _raiseCap(alice, cap);
        _settle(BATCH, _debits(alice, first), _credits(gpu1, first), 0);
        _expectCapExceeded(alice, cap - first, second);
        _settle("batch 2", _debits(alice, second), _credits(gpu1, second), 0);
    }

    function test_RevertWhen_UsageRootIsZero() external {
        _prepay(alice, 1);
        _expectRevert(IInferenceEscrow.InferenceEscrow_ZeroUsageRoot.selector);
        vm.prank(settler);
        escrow.settle(BATCH, _debits(alice, 1), _credits(gpu1, 1), 0, 0);
    }

    function test_RevertWhen_BatchSettledBefore() external {
        _earn(BATCH, 10);
        _prepay(alice, 10);
        _expectAlreadySettled();
        _settle(BATCH, _debits(alice, 10), _credits(gpu1, 10), 0);

        _expectAlreadySettled();
        vm.prank(settler);
        escrow.settle(BATCH, _debits(alice, 3), _credits(gpu2, 2), 1, "another root");
    }

    function test_RevertWhen_DebitAboveDeposit() external {
        _prepay(alice, 100);
        _prepay(bob, 50);
        _raiseCap(bob, 100);
        _expectInsufficient(bob, 50, 51);
        _settle(BATCH, _debits(alice, 49, bob, 51), _credits(gpu1, 100), 0);

        vm.assertFalse(escrow.batchSettled(BATCH));
        vm.assertEq(escrow.depositOf(alice), 100);
    }

    function test_RevertWhen_DebitsOfOneUserAddUpAboveDeposit() external {
        _prepay(alice, 100);
        _expectInsufficient(alice, 40, 41);
        _settle(BATCH, _debits(alice, 60, alice, 41), _credits(gpu1, 101), 0);
    }

    function test_RevertWhen_DebitsOfOneUserAddUpAboveCap() external {
        _prepay(alice, 100);
        _deposit(alice, 1);
        _expectCapExceeded(alice, 40, 41);
        _settle(BATCH, _debits(alice, 60, alice, 41), _credits(gpu1, 101), 0);
    }

    function test_RevertWhen_NoCapWasSigned() external {
        _deposit(alice, 100);
        _expectCapExceeded(alice, 0, 1);
        _settle(BATCH, _debits(alice, 1), _credits(gpu1, 1), 0);
    }

    function testFuzz_RevertWhen_Unbalanced(uint256 debit, uint256 credit, uint256 fee) external {
        debit = _bound(debit, 0, FUNDS);
        credit = _bound(credit, 0, FUNDS);
        fee = _bound(fee, 0, FUNDS);
        if (debit == credit + fee) ++fee;
        _prepay(alice, FUNDS);

        _expectUnbalanced(debit, credit, fee);
        _settle(BATCH, _debits(alice, debit), _credits(gpu1, credit), fee);
        vm.assertFalse(escrow.batchSettled(BATCH));
    }

    function test_RevertWhen_CreditsDiffer() external {
        _prepay(alice, 10);
        _expectUnbalanced(10, 8, 1);
        _settle(BATCH, _debits(alice, 10), _credits(gpu1, 8), 1);
        _expectUnbalanced(10, 10, 1);
        _settle(BATCH, _debits(alice, 10), _credits(gpu1, 10), 1);
    }

    function test_RevertWhen_SumOverflows() external {
        _prepay(alice, 1);
        vm.expectRevert(abi.encodeWithSignature("Panic(uint256)", PANIC_OVERFLOW));
        _settle(BATCH, _debits(alice, 1), _credits(gpu1, 2), type(uint256).max);
    }

    /// @dev The largest credits there can be, which would run out of their 96 bits.
    function test_RevertWhen_CreditsAreMoreThanThereIs() external {
        _earn("before", 1);
        _prepay(alice, 1);
        uint256 most = type(uint96).max;
        _expectUnbalanced(1, 2 * most, 0);
        _settle(BATCH, _debits(alice, 1), _credits(gpu1, most, gpu1, most), 0);
        vm.assertEq(escrow.creditOf(gpu1), 1);
        vm.assertEq(escrow.earnedOf(gpu1), 1);
    }

    function test_RevertWhen_ProviderIsZero() external {
        _prepay(alice, 1);
        _expectRevert(IInferenceEscrow.InferenceEscrow_ZeroAddress.selector);
        _settle(BATCH, _debits(alice, 1), _credits(address(0), 1), 0);
    }

    function _expectAlreadySettled() private {
        vm.expectRevert(
            abi.encodeWithSelector(
                IInferenceEscrow.InferenceEscrow_BatchAlreadySettled.selector, BATCH
            )
        );
    }

    function _expectCapExceeded(address user, uint256 left, uint256 debit) private {
        vm.expectRevert(
            abi.encodeWithSelector(
                IInferenceEscrow.InferenceEscrow_CapExceeded.selector, user, left, debit
            )
        );
    }

    function _expectUnbalanced(uint256 debited, uint256 credited, uint256 fee) private {
        vm.expectRevert(
            abi.encodeWithSelector(
                IInferenceEscrow.InferenceEscrow_BatchUnbalanced.selector, debited, credited, fee
            )
        );
    }
}
