// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {InferenceEscrow} from "../src/InferenceEscrow.sol";
import {IInferenceEscrow} from "../src/interfaces/IInferenceEscrow.sol";
import {CallbackToken} from "./mocks/CallbackToken.sol";
import {FeeToken} from "./mocks/FeeToken.sol";
import {EscrowTest} from "./utils/EscrowTest.sol";
import {ReentrancyGuard} from "@openzeppelin/contracts/utils/ReentrancyGuard.sol";

/// createEscrow
/// ├── when the amount is zero: it reverts
/// ├── when the caller used the request id before: it reverts, also when that one is closed
/// ├── when another user used the request id before: it opens the caller's own
/// ├── when the token takes a fee on transfer, or calls back: it reverts
/// └── it locks the amount until the deadline
/// cancel
/// ├── when the caller is neither the user nor the operator: it reverts
/// ├── when the escrow is missing, released or cancelled: it reverts
/// ├── when the user calls before the deadline: it reverts
/// ├── when the user calls from the deadline on: it credits the whole amount to the user
/// └── when the operator calls, at any time: it credits the whole amount to the user
contract RequestTest is EscrowTest {
    uint256 private constant AMOUNT = 100;

    // --------------------------------------------------------- createEscrow

    function test_CreateEscrow() external {
        vm.warp(1_800_000_000);
        bytes32 escrowId = keccak256(abi.encode(block.chainid, address(escrow), alice, REQUEST));
        uint64 deadline = 1_800_000_000 + 1 days;

        _expectEmit();
        emit IInferenceEscrow.EscrowCreated(escrowId, alice, REQUEST, AMOUNT, deadline);
        _createEscrow(alice, REQUEST, AMOUNT);

        IInferenceEscrow.Escrow memory created = escrow.escrowOf(alice, REQUEST);
        vm.assertEq(created.amount, AMOUNT);
        vm.assertEq(created.deadline, deadline);
        _assertState(created.state, IInferenceEscrow.EscrowState.Open);
        vm.assertEq(escrow.escrowIdOf(alice, REQUEST), escrowId);
        vm.assertEq(escrow.totalEscrowed(), AMOUNT);
        vm.assertEq(far.balanceOf(address(escrow)), AMOUNT);
    }

    function test_RequestIdCannotBeSquatted() external {
        _createEscrow(bob, REQUEST, 1);
        _createEscrow(alice, REQUEST, AMOUNT);
        vm.assertEq(escrow.escrowOf(bob, REQUEST).amount, 1);
        vm.assertEq(escrow.escrowOf(alice, REQUEST).amount, AMOUNT);
    }

    function test_RevertWhen_AmountIsZero() external {
        _expectRevert(IInferenceEscrow.InferenceEscrow_ZeroAmount.selector);
        _createEscrow(alice, REQUEST, 0);
    }

    function test_RevertWhen_RequestIdIsOpen() external {
        bytes32 escrowId = _createEscrow(alice, REQUEST, AMOUNT);
        _expectExists(escrowId);
        vm.prank(alice);
        escrow.createEscrow(REQUEST, AMOUNT);
    }

    function test_RevertWhen_RequestIdWasReleased() external {
        bytes32 escrowId = _createEscrow(alice, REQUEST, AMOUNT);
        _release(alice, REQUEST, gpu1, AMOUNT);
        _expectExists(escrowId);
        vm.prank(alice);
        escrow.createEscrow(REQUEST, AMOUNT);
    }

    function test_RevertWhen_RequestIdWasCancelled() external {
        bytes32 escrowId = _createEscrow(alice, REQUEST, AMOUNT);
        _cancel(operator, alice);
        _expectExists(escrowId);
        vm.prank(alice);
        escrow.createEscrow(REQUEST, AMOUNT);
    }

    function test_RevertWhen_TokenTakesFee() external {
        FeeToken token = new FeeToken();
        InferenceEscrow feeEscrow = _deploy(token);
        token.approve(address(feeEscrow), AMOUNT);
        vm.expectRevert(
            abi.encodeWithSelector(
                IInferenceEscrow.InferenceEscrow_InexactTransfer.selector, AMOUNT, AMOUNT - 1
            )
        );
        feeEscrow.createEscrow(REQUEST, AMOUNT);
    }

    function test_RevertWhen_TokenReenters() external {
        CallbackToken token = new CallbackToken();
        InferenceEscrow target = _deploy(token);
        token.approve(address(target), AMOUNT);
        token.callback(address(target), abi.encodeCall(target.createEscrow, (REQUEST, 1)));
        _expectRevert(ReentrancyGuard.ReentrancyGuardReentrantCall.selector);
        target.createEscrow(REQUEST, AMOUNT);
    }

    // --------------------------------------------------------------- cancel

    function testFuzz_UserCancelsFromTheDeadlineOn(uint256 late) external {
        bytes32 escrowId = _createEscrow(alice, REQUEST, AMOUNT);
        vm.warp(escrow.escrowOf(alice, REQUEST).deadline + _bound(late, 0, 3650 days));

        _expectEmit();
        emit IInferenceEscrow.EscrowCancelled(escrowId, alice, AMOUNT);
        _cancel(alice, alice);

        _assertCancelled();
        vm.prank(alice);
        escrow.claim();
        vm.assertEq(far.balanceOf(alice), FUNDS);
    }

    function testFuzz_RevertWhen_UserCancelsBeforeTheDeadline(uint256 early) external {
        bytes32 escrowId = _createEscrow(alice, REQUEST, AMOUNT);
        uint256 deadline = escrow.escrowOf(alice, REQUEST).deadline;
        vm.warp(deadline - _bound(early, 1, escrow.CANCEL_DELAY()));
        vm.expectRevert(
            abi.encodeWithSelector(
                IInferenceEscrow.InferenceEscrow_CancelTooEarly.selector, escrowId, deadline
            )
        );
        _cancel(alice, alice);
    }

    function test_OperatorCancelsBeforeTheDeadline() external {
        _createEscrow(alice, REQUEST, AMOUNT);
        _cancel(operator, alice);
        _assertCancelled();
    }

    function test_OperatorCancelsAfterTheDeadline() external {
        _createEscrow(alice, REQUEST, AMOUNT);
        vm.warp(escrow.escrowOf(alice, REQUEST).deadline);
        _cancel(operator, alice);
        _assertCancelled();
    }

    function test_RevertWhen_StrangerCancels() external {
        _createEscrow(alice, REQUEST, AMOUNT);
        vm.warp(escrow.escrowOf(alice, REQUEST).deadline);
        vm.expectRevert(
            abi.encodeWithSelector(
                IInferenceEscrow.InferenceEscrow_NotUserNorOperator.selector, stranger
            )
        );
        _cancel(stranger, alice);
    }

    function test_RevertWhen_CancellingWhatIsMissing() external {
        _expectNotOpen(escrow.escrowIdOf(alice, REQUEST), IInferenceEscrow.EscrowState.None);
        _cancel(alice, alice);
    }

    function test_RevertWhen_CancellingWhatWasReleased() external {
        bytes32 escrowId = _createEscrow(alice, REQUEST, AMOUNT);
        _release(alice, REQUEST, gpu1, AMOUNT);
        _expectNotOpen(escrowId, IInferenceEscrow.EscrowState.Released);
        _cancel(operator, alice);
    }

    function test_RevertWhen_CancellingTwice() external {
        bytes32 escrowId = _createEscrow(alice, REQUEST, AMOUNT);
        _cancel(operator, alice);
        _expectNotOpen(escrowId, IInferenceEscrow.EscrowState.Cancelled);
        _cancel(operator, alice);
    }

    // -------------------------------------------------------------- helpers

    function _cancel(address caller, address user) private {
        vm.prank(caller);
        escrow.cancel(user, REQUEST);
    }

    function _assertCancelled() private view {
        _assertState(_stateOf(alice, REQUEST), IInferenceEscrow.EscrowState.Cancelled);
        vm.assertEq(escrow.creditOf(alice), AMOUNT);
        vm.assertEq(escrow.earnedOf(alice), 0);
        vm.assertEq(escrow.totalEscrowed(), 0);
        vm.assertEq(escrow.totalCredits(), AMOUNT);
    }

    function _expectExists(bytes32 escrowId) private {
        vm.expectRevert(
            abi.encodeWithSelector(IInferenceEscrow.InferenceEscrow_EscrowExists.selector, escrowId)
        );
    }
}
