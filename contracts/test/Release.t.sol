// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {IInferenceEscrow} from "../src/interfaces/IInferenceEscrow.sol";
import {EscrowTest} from "./utils/EscrowTest.sol";

contract ReleaseTest is EscrowTest {
    uint256 private constant AMOUNT = 100;
    bytes32 private escrowId;

    function setUp() public override {
        super.setUp();
        escrowId = _createEscrow(alice, REQUEST, AMOUNT);
    }

    // ------------------------------------------------------ releaseMultiple

    function test_Release() external {
        _expectEmit();
        emit IInferenceEscrow.EscrowCredited(escrowId, gpu1, 50);
        _expectEmit();
        emit IInferenceEscrow.EscrowCredited(escrowId, gpu2, 30);
        _expectEmit();
        emit IInferenceEscrow.EscrowReleased(escrowId, alice, 80, 20);
        vm.prank(settler);
        escrow.releaseMultiple(alice, REQUEST, _array(gpu1, gpu2), _array(50, 30));

        _assertState(_stateOf(alice, REQUEST), IInferenceEscrow.EscrowState.Released);
        vm.assertEq(escrow.creditOf(gpu1), 50);
        vm.assertEq(escrow.earnedOf(gpu1), 50);
        vm.assertEq(escrow.creditOf(gpu2), 30);
        vm.assertEq(escrow.creditOf(alice), 20);
        vm.assertEq(escrow.earnedOf(alice), 0);
        vm.assertEq(escrow.totalEscrowed(), 0);
        vm.assertEq(escrow.totalCredits(), AMOUNT);
        vm.assertEq(escrow.leftToday(), CEILING - 80);
        vm.assertEq(escrow.lastSettledAt(), START);
        vm.assertEq(escrow.escrowOf(alice, REQUEST).amount, AMOUNT);
    }

    function testFuzz_Conserves(uint256 first, uint256 second) external {
        first = _bound(first, 0, AMOUNT);
        second = _bound(second, 0, AMOUNT - first);
        vm.prank(settler);
        escrow.releaseMultiple(alice, REQUEST, _array(gpu1, gpu2), _array(first, second));
        vm.assertEq(escrow.earnedOf(gpu1) + escrow.earnedOf(gpu2), first + second);
        vm.assertEq(escrow.creditOf(alice), AMOUNT - first - second);
    }

    function test_NothingDue() external {
        vm.prank(settler);
        escrow.releaseMultiple(alice, REQUEST, new address[](0), new uint256[](0));
        vm.assertEq(escrow.creditOf(alice), AMOUNT);
        _assertState(_stateOf(alice, REQUEST), IInferenceEscrow.EscrowState.Released);
    }

    function test_AfterTheDeadline() external {
        vm.warp(escrow.escrowOf(alice, REQUEST).deadline + 1);
        _release(alice, REQUEST, gpu1, AMOUNT);
        vm.assertEq(escrow.creditOf(gpu1), AMOUNT);
    }

    function test_RevertWhen_Missing() external {
        _expectNotOpen(escrow.escrowIdOf(bob, REQUEST), IInferenceEscrow.EscrowState.None);
        _release(bob, REQUEST, gpu1, 1);
    }

    function test_RevertWhen_ReleasedBefore() external {
        _release(alice, REQUEST, gpu1, 1);
        _expectNotOpen(escrowId, IInferenceEscrow.EscrowState.Released);
        _release(alice, REQUEST, gpu1, 1);
    }

    function test_RevertWhen_Cancelled() external {
        vm.prank(settler);
        escrow.cancel(alice, REQUEST);
        _expectNotOpen(escrowId, IInferenceEscrow.EscrowState.Cancelled);
        _release(alice, REQUEST, gpu1, 1);
    }

    function test_RevertWhen_LengthsDiffer() external {
        vm.expectRevert(_lengthMismatch(2, 1));
        vm.prank(settler);
        escrow.releaseMultiple(alice, REQUEST, _array(gpu1, gpu2), _array(uint256(1)));
    }

    function test_RevertWhen_ProviderIsZero() external {
        _expectRevert(IInferenceEscrow.InferenceEscrow_ZeroAddress.selector);
        _release(alice, REQUEST, address(0), 1);
    }

    function testFuzz_RevertWhen_AmountsExceedEscrow(uint256 first, uint256 second) external {
        first = _bound(first, 0, AMOUNT);
        second = _bound(second, AMOUNT - first + 1, type(uint256).max);
        vm.expectRevert(_exceeds());
        vm.prank(settler);
        escrow.releaseMultiple(alice, REQUEST, _array(gpu1, gpu2), _array(first, second));
    }

    function test_RevertWhen_OneUnitTooMuch() external {
        vm.expectRevert(_exceeds());
        vm.prank(settler);
        escrow.releaseMultiple(alice, REQUEST, _array(gpu1, gpu2), _array(AMOUNT - 1, 2));
    }

    function test_RevertWhen_SumOverflows() external {
        vm.expectRevert(_exceeds());
        vm.prank(settler);
        escrow.releaseMultiple(
            alice, REQUEST, _array(gpu1, gpu2), _array(AMOUNT, type(uint256).max)
        );
    }

    // --------------------------------------------------------- releaseBatch

    function test_ReleaseBatch() external {
        _createEscrow(bob, REQUEST, 10);
        IInferenceEscrow.Release[] memory items = new IInferenceEscrow.Release[](2);
        items[0] = _item(alice, _array(gpu1), _array(uint256(90)));
        items[1] = _item(bob, _array(gpu1), _array(uint256(10)));
        _releaseBatch(items);

        vm.assertEq(escrow.creditOf(gpu1), 100);
        vm.assertEq(escrow.creditOf(alice), 10);
        vm.assertEq(escrow.creditOf(bob), 0);
        vm.assertEq(escrow.totalEscrowed(), 0);
    }

    /// @dev Every kind of bad item, and a good one at the end.
    function test_BadItemsDoNotBlockTheOthers() external {
        bytes32 bobsId = _createEscrow(bob, REQUEST, 10);
        bytes32 missingId = escrow.escrowIdOf(stranger, REQUEST);
        IInferenceEscrow.Release[] memory items = new IInferenceEscrow.Release[](5);
        items[0] = _item(stranger, _array(gpu1), _array(uint256(1)));
        items[1] = _item(bob, _array(gpu1, gpu2), _array(uint256(1)));
        items[2] = _item(bob, _array(address(0)), _array(uint256(1)));
        items[3] = _item(alice, _array(gpu1, gpu2), _array(1, type(uint256).max));
        items[4] = _item(alice, _array(gpu1), _array(AMOUNT));

        _expectSkipped(missingId, _notOpen(missingId, IInferenceEscrow.EscrowState.None));
        _expectSkipped(bobsId, _lengthMismatch(2, 1));
        _expectSkipped(
            bobsId, abi.encodeWithSelector(IInferenceEscrow.InferenceEscrow_ZeroAddress.selector)
        );
        _expectSkipped(escrowId, _exceeds());
        _releaseBatch(items);

        vm.assertEq(escrow.creditOf(gpu1), AMOUNT);
        _assertState(_stateOf(bob, REQUEST), IInferenceEscrow.EscrowState.Open);
        vm.assertEq(escrow.totalEscrowed(), 10);
    }

    function test_ItemTwiceIsReleasedOnce() external {
        IInferenceEscrow.Release[] memory items = new IInferenceEscrow.Release[](2);
        items[0] = _item(alice, _array(gpu1), _array(uint256(40)));
        items[1] = _item(alice, _array(gpu1), _array(uint256(40)));
        _expectSkipped(escrowId, _notOpen(escrowId, IInferenceEscrow.EscrowState.Released));
        _releaseBatch(items);
        vm.assertEq(escrow.creditOf(gpu1), 40);
    }

    // -------------------------------------------------------------- helpers

    function _releaseBatch(IInferenceEscrow.Release[] memory items) private {
        vm.prank(settler);
        escrow.releaseBatch(items);
    }

    function _item(address user, address[] memory providers, uint256[] memory amounts)
        private
        pure
        returns (IInferenceEscrow.Release memory)
    {
        return IInferenceEscrow.Release(user, REQUEST, providers, amounts);
    }

    function _expectSkipped(bytes32 id, bytes memory reason) private {
        _expectEmit();
        emit IInferenceEscrow.ReleaseSkipped(id, reason);
    }

    function _notOpen(bytes32 id, IInferenceEscrow.EscrowState state)
        private
        pure
        returns (bytes memory)
    {
        return abi.encodeWithSelector(
            IInferenceEscrow.InferenceEscrow_EscrowNotOpen.selector, id, state
        );
    }

    function _lengthMismatch(uint256 providers, uint256 amounts)
        private
        pure
        returns (bytes memory)
    {
        return abi.encodeWithSelector(
            IInferenceEscrow.InferenceEscrow_LengthMismatch.selector, providers, amounts
        );
    }

    function _exceeds() private view returns (bytes memory) {
        return abi.encodeWithSelector(
            IInferenceEscrow.InferenceEscrow_ExceedsEscrow.selector, escrowId, AMOUNT
        );
    }
}
