// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {InferenceEscrow} from "../src/InferenceEscrow.sol";
import {IInferenceEscrow} from "../src/interfaces/IInferenceEscrow.sol";
import {CallbackToken} from "./mocks/CallbackToken.sol";
import {EscrowTest} from "./utils/EscrowTest.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";

contract WithdrawTest is EscrowTest {
    function setUp() public override {
        super.setUp();
        _prepay(alice, 100);
    }

    // ---------------------------------------------------- requestWithdrawal

    function test_Request() external {
        _expectEmit();
        emit IInferenceEscrow.WithdrawalRequested(alice, 100, READY_AT);
        _request(100);
        vm.assertEq(escrow.withdrawalOf(alice).amount, 100);
        vm.assertEq(escrow.withdrawalOf(alice).readyAt, START + WITHDRAWAL_DELAY);
        vm.assertEq(escrow.depositOf(alice), 100);

        _settle(BATCH, _debits(alice, 100), _credits(gpu1, 100), 0);
        vm.assertEq(escrow.depositOf(alice), 0);
    }

    function test_RequestReplacesTheOneBefore() external {
        _request(100);
        vm.warp(START + WITHDRAWAL_DELAY);
        _request(1);
        vm.assertEq(escrow.withdrawalOf(alice).amount, 1);
        _expectTooEarly(START + 2 * WITHDRAWAL_DELAY);
        _withdraw(alice);
    }

    function test_RevertWhen_RequestIsZero() external {
        _expectRevert(IInferenceEscrow.InferenceEscrow_ZeroAmount.selector);
        _request(0);
    }

    function test_RevertWhen_RequestIsAboveDeposit() external {
        _expectInsufficient(alice, 100, 101);
        _request(101);
        _expectInsufficient(alice, 100, type(uint256).max);
        _request(type(uint256).max);
    }

    // ----------------------------------------------------- cancelWithdrawal

    function test_Cancel() external {
        _request(100);
        _expectEmit();
        emit IInferenceEscrow.WithdrawalCancelled(alice);
        vm.prank(alice);
        escrow.cancelWithdrawal();

        vm.assertEq(escrow.withdrawalOf(alice).amount, 0);
        vm.warp(START + WITHDRAWAL_DELAY);
        _expectNothingRequested(alice);
        _withdraw(alice);
    }

    function test_RevertWhen_NothingToCancel() external {
        _expectNothingRequested(alice);
        vm.prank(alice);
        escrow.cancelWithdrawal();
    }

    // ------------------------------------------------------------- withdraw

    function testFuzz_Withdraw(uint256 amount, uint256 late) external {
        amount = _bound(amount, 1, 100);
        _request(amount);
        vm.warp(START + WITHDRAWAL_DELAY + _bound(late, 0, 3650 days));

        _expectEmit();
        emit IInferenceEscrow.Withdrawn(alice, stranger, amount);
        _withdraw(stranger);

        vm.assertEq(far.balanceOf(stranger), amount);
        vm.assertEq(escrow.depositOf(alice), 100 - amount);
        vm.assertEq(escrow.totalDeposits(), 100 - amount);
        _assertCap(alice, 100, 0);
        _expectNothingRequested(alice);
        _withdraw(stranger);
    }

    function test_Withdraw() external {
        _request(40);
        vm.warp(START + WITHDRAWAL_DELAY);
        _expectEmit();
        emit IInferenceEscrow.Withdrawn(alice, stranger, 40);
        _withdraw(stranger);
        vm.assertEq(far.balanceOf(stranger), 40);
        vm.assertEq(escrow.withdrawalOf(alice).amount, 0);
        vm.assertEq(escrow.withdrawalOf(alice).readyAt, 0);
        _expectNothingRequested(alice);
        _withdraw(stranger);
    }

    function test_RevertWhen_OneSecondTooEarly() external {
        _request(40);
        vm.warp(START + WITHDRAWAL_DELAY - 1);
        _expectTooEarly(START + WITHDRAWAL_DELAY);
        _withdraw(alice);
    }

    function test_LessIsLeftThanWasAsked() external {
        _request(100);
        _settle(BATCH, _debits(alice, 70), _credits(gpu1, 70), 0);
        vm.warp(START + WITHDRAWAL_DELAY);
        _withdraw(alice);
        vm.assertEq(far.balanceOf(alice), FUNDS - 70);
        vm.assertEq(escrow.depositOf(alice), 0);
        vm.assertEq(escrow.totalDeposits(), 0);
        _assertCap(alice, 100, 70);
    }

    function test_RevertWhen_NothingIsLeft() external {
        _request(60);
        _settle(BATCH, _debits(alice, 100), _credits(gpu1, 100), 0);
        vm.warp(START + WITHDRAWAL_DELAY);
        _expectInsufficient(alice, 0, 60);
        _withdraw(alice);
        vm.assertEq(escrow.withdrawalOf(alice).amount, 60);
    }

    function test_RevertWhen_RecipientIsZero() external {
        _expectRevert(IInferenceEscrow.InferenceEscrow_ZeroAddress.selector);
        _withdraw(address(0));
    }

    function test_RevertWhen_RecipientIsEscrow() external {
        _expectRevert(IInferenceEscrow.InferenceEscrow_RecipientIsEscrow.selector);
        _withdraw(address(escrow));
    }

    function test_RevertWhen_NothingIsAsked() external {
        _expectNothingRequested(alice);
        _withdraw(alice);
        vm.warp(START + DORMANCY);
        _expectNothingRequested(alice);
        _withdraw(alice);
    }

    function testFuzz_RevertWhen_TooEarly(uint256 early) external {
        _request(100);
        vm.warp(START + WITHDRAWAL_DELAY - _bound(early, 1, WITHDRAWAL_DELAY));
        _expectTooEarly(START + WITHDRAWAL_DELAY);
        _withdraw(alice);
    }

    function test_RevertWhen_TokenReenters() external {
        CallbackToken token = new CallbackToken();
        InferenceEscrow target = _deploy(token);
        token.approve(address(target), 100);
        target.deposit(100);
        target.requestWithdrawal(100);
        vm.warp(START + WITHDRAWAL_DELAY);
        token.callback(address(target), abi.encodeCall(target.withdraw, (address(this))));
        _expectRevert(ReentrancyGuardTransient.ReentrancyGuardReentrantCall.selector);
        target.withdraw(address(this));
    }

    // -------------------------------------------------------------- dormant

    function test_DormantSinceDeployment() external {
        vm.assertEq(escrow.lastSettledAt(), START);
        vm.warp(START + DORMANCY - 1);
        vm.assertFalse(escrow.dormant());
        _request(100);
        _expectTooEarly(START + DORMANCY - 1 + WITHDRAWAL_DELAY);
        _withdraw(alice);

        vm.warp(START + DORMANCY);
        vm.assertTrue(escrow.dormant());
        _withdraw(alice);
        vm.assertEq(far.balanceOf(alice), FUNDS);
    }

    function test_DormantSinceTheLastBatch() external {
        vm.warp(START + DORMANCY);
        _settle(BATCH, _debits(alice, 1), _credits(gpu1, 1), 0);
        vm.assertEq(escrow.lastSettledAt(), START + DORMANCY);
        vm.assertFalse(escrow.dormant());
        vm.warp(START + 2 * DORMANCY - 1);
        vm.assertFalse(escrow.dormant());
        vm.warp(START + 2 * DORMANCY);
        vm.assertTrue(escrow.dormant());
    }

    // -------------------------------------------------------------- helpers

    function _request(uint256 amount) private {
        vm.prank(alice);
        escrow.requestWithdrawal(amount);
    }

    function _withdraw(address to) private {
        vm.prank(alice);
        escrow.withdraw(to);
    }
}
