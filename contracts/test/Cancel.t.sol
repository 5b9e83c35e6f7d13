// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {IInferenceEscrow} from "../src/interfaces/IInferenceEscrow.sol";
import {EscrowTest} from "./utils/EscrowTest.sol";

contract CancelTest is EscrowTest {
    uint256 private constant AMOUNT = 100;

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

    function test_UserCancelsAtTheDeadline() external {
        bytes32 escrowId = _createEscrow(alice, REQUEST, AMOUNT);
        vm.warp(START + 1 days);
        _expectEmit();
        emit IInferenceEscrow.EscrowCancelled(escrowId, alice, AMOUNT);
        _cancel(alice, alice);
        _assertCancelled();
    }

    function test_RevertWhen_UserCancelsOneSecondTooEarly() external {
        bytes32 escrowId = _createEscrow(alice, REQUEST, AMOUNT);
        vm.warp(START + 1 days - 1);
        vm.expectRevert(
            abi.encodeWithSelector(
                IInferenceEscrow.InferenceEscrow_CancelTooEarly.selector, escrowId, START + 1 days
            )
        );
        _cancel(alice, alice);
    }

    function test_SettlerCancelsBeforeTheDeadline() external {
        _createEscrow(alice, REQUEST, AMOUNT);
        _cancel(settler, alice);
        _assertCancelled();
    }

    function test_SettlerCancelsAfterTheDeadline() external {
        _createEscrow(alice, REQUEST, AMOUNT);
        vm.warp(escrow.escrowOf(alice, REQUEST).deadline);
        _cancel(settler, alice);
        _assertCancelled();
    }

    function test_RevertWhen_StrangerCancels() external {
        _createEscrow(alice, REQUEST, AMOUNT);
        vm.warp(escrow.escrowOf(alice, REQUEST).deadline);
        vm.expectRevert(
            abi.encodeWithSelector(
                IInferenceEscrow.InferenceEscrow_NotUserNorSettler.selector, stranger
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
        _cancel(settler, alice);
    }

    function test_RevertWhen_CancellingTwice() external {
        bytes32 escrowId = _createEscrow(alice, REQUEST, AMOUNT);
        _cancel(settler, alice);
        _expectNotOpen(escrowId, IInferenceEscrow.EscrowState.Cancelled);
        _cancel(settler, alice);
    }

    function _assertCancelled() private view {
        _assertState(_stateOf(alice, REQUEST), IInferenceEscrow.EscrowState.Cancelled);
        vm.assertEq(escrow.creditOf(alice), AMOUNT);
        vm.assertEq(escrow.earnedOf(alice), 0);
        vm.assertEq(escrow.totalEscrowed(), 0);
        vm.assertEq(escrow.totalCredits(), AMOUNT);
    }
}
