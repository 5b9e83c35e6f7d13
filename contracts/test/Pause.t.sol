// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {IInferenceEscrow} from "../src/interfaces/IInferenceEscrow.sol";
import {EscrowTest} from "./utils/EscrowTest.sol";
import {Pausable} from "@openzeppelin/contracts/utils/Pausable.sol";

contract PauseTest is EscrowTest {
    /// @dev Everything has begun that could be finished, and all delays are over.
    function setUp() public override {
        super.setUp();
        _earn("before", 30);
        _prepay(alice, 100);
        _createEscrow(alice, REQUEST, 10);
        _createEscrow(bob, REQUEST, 10);
        vm.prank(alice);
        escrow.requestWithdrawal(100);
        vm.prank(alice);
        escrow.requestCapLowering(50);
        vm.warp(START + WITHDRAWAL_DELAY);
        vm.prank(pauser);
        escrow.pause();
    }

    function test_MoneyDoesNotComeIn() external {
        _expectPaused();
        _deposit(alice, 1);
        _expectPaused();
        vm.prank(alice);
        escrow.depositFor(bob, 1);
        _expectPaused();
        vm.prank(alice);
        escrow.depositWithPermit(1, block.timestamp, 27, 0, 0);
        _expectPaused();
        vm.prank(alice);
        escrow.createEscrow("another", 1);
    }

    function test_NothingIsSettled() external {
        _expectPaused();
        _settle(BATCH, _debits(alice, 1), _credits(gpu1, 1), 0);
        _expectPaused();
        _release(alice, REQUEST, gpu1, 1);
        _expectPaused();
        vm.prank(settler);
        escrow.releaseBatch(new IInferenceEscrow.Release[](0));
    }

    function test_UsersGetOut() external {
        vm.prank(alice);
        escrow.withdraw(alice);
        _cancel(alice, alice);
        vm.prank(alice);
        escrow.claim();
        vm.assertEq(far.balanceOf(alice), FUNDS - 30);
    }

    function test_UsersAskAndTakeBack() external {
        vm.prank(alice);
        escrow.cancelWithdrawal();
        vm.prank(alice);
        escrow.requestWithdrawal(1);
        vm.assertEq(escrow.withdrawalOf(alice).amount, 1);
        vm.prank(alice);
        escrow.cancelCapLowering();
        vm.prank(alice);
        escrow.requestCapLowering(60);
        vm.assertEq(escrow.capLoweringOf(alice).amount, 60);
    }

    function test_CapsGoOn() external {
        vm.prank(alice);
        escrow.lowerCap();
        _assertCap(alice, 50, 30);
        _raiseCap(alice, 500);
        _assertCap(alice, 500, 30);
    }

    function test_ProvidersGetOut() external {
        vm.prank(gpu1);
        escrow.claimTo(stranger);
        vm.assertEq(far.balanceOf(stranger), 30);
    }

    function test_SettlerCancels() external {
        _cancel(settler, bob);
        vm.assertEq(escrow.creditOf(bob), 10);
    }

    function test_AdminGoesOn() external {
        vm.prank(admin);
        escrow.setFeeRecipient(stranger);
        vm.assertEq(escrow.feeRecipient(), stranger);
        vm.prank(admin);
        escrow.setDailyCeiling(1);
        vm.assertEq(escrow.dailyCeiling(), 1);
    }

    function test_AllGoesOnAfterwards() external {
        vm.prank(pauser);
        escrow.unpause();
        vm.assertFalse(escrow.paused());
        _deposit(alice, 1);
        _settle(BATCH, _debits(alice, 1), _credits(gpu1, 1), 0);
        _release(alice, REQUEST, gpu1, 1);
        vm.assertEq(escrow.creditOf(gpu1), 32);
    }

    function test_RevertWhen_PausedAlready() external {
        _expectPaused();
        vm.prank(pauser);
        escrow.pause();
    }

    function test_RevertWhen_NotPaused() external {
        vm.prank(pauser);
        escrow.unpause();
        _expectRevert(Pausable.ExpectedPause.selector);
        vm.prank(pauser);
        escrow.unpause();
    }
}
