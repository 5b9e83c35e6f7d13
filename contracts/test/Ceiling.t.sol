// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {IInferenceEscrow} from "../src/interfaces/IInferenceEscrow.sol";
import {EscrowTest} from "./utils/EscrowTest.sol";

contract CeilingTest is EscrowTest {
    uint256 private constant LEFT = 100;
    uint256 private constant NOON = 20_833 days + 12 hours; // of the day of the start

    function setUp() public override {
        super.setUp();
        vm.warp(NOON);
        _setCeiling(LEFT);
        _prepay(alice, 1000);
    }

    function test_AllIsLeftAtFirst() external view {
        vm.assertEq(escrow.dailyCeiling(), LEFT);
        vm.assertEq(escrow.leftToday(), LEFT);
    }

    function test_ReachedExactly() external {
        _debit("1", 60);
        vm.assertEq(escrow.leftToday(), 40);
        _debit("2", 40);
        vm.assertEq(escrow.leftToday(), 0);
        _expectCeilingExceeded(0, 1);
        _debit("3", 1);
        _debit("4", 0);
    }

    function test_RevertWhen_OneBatchIsAbove() external {
        _expectCeilingExceeded(LEFT, LEFT + 1);
        _debit("1", LEFT + 1);
    }

    function test_RevertWhen_BatchesAddUpAbove() external {
        _debit("1", 60);
        _expectCeilingExceeded(40, 41);
        _debit("2", 41);
    }

    function test_NextDayCountsFromZero() external {
        _debit("1", LEFT);
        vm.warp(NOON + 12 hours - 1);
        _expectCeilingExceeded(0, 1);
        _debit("2", 1);
        vm.warp(NOON + 12 hours);
        vm.assertEq(escrow.leftToday(), LEFT);
        _debit("2", 70);
        vm.assertEq(escrow.leftToday(), 30);
        vm.warp(NOON + 10 days);
        _debit("3", LEFT);
        vm.assertEq(escrow.leftToday(), 0);
    }

    function test_ReleasesCountWhatTheyPay() external {
        _createEscrow(alice, "1", 500);
        _release(alice, "1", gpu1, 70);
        vm.assertEq(escrow.leftToday(), 30);
        _createEscrow(alice, "2", 500);
        _expectCeilingExceeded(30, 31);
        _release(alice, "2", gpu1, 31);
        _release(alice, "2", gpu1, 30);
        vm.assertEq(escrow.leftToday(), 0);
    }

    function test_BatchOfReleasesSkipsWhatDoesNotFit() external {
        bytes32 skipped = _createEscrow(alice, "1", 500);
        _createEscrow(alice, "2", 500);
        _createEscrow(alice, "3", 500);
        _debit("batch", 60);
        IInferenceEscrow.Release[] memory items = new IInferenceEscrow.Release[](3);
        items[0] = IInferenceEscrow.Release(alice, "2", _array(gpu1), _array(uint256(30)));
        items[1] = IInferenceEscrow.Release(alice, "1", _array(gpu1), _array(uint256(11)));
        items[2] = IInferenceEscrow.Release(alice, "3", _array(gpu1), _array(uint256(10)));
        _expectEmit();
        emit IInferenceEscrow.ReleaseSkipped(
            skipped,
            abi.encodeWithSelector(
                IInferenceEscrow.InferenceEscrow_DailyCeilingExceeded.selector, 10, 11
            )
        );
        vm.prank(settler);
        escrow.releaseBatch(items);
        vm.assertEq(escrow.creditOf(gpu1), 100);
        vm.assertEq(escrow.leftToday(), 0);
        _assertState(_stateOf(alice, "1"), IInferenceEscrow.EscrowState.Open);
    }

    function testFuzz_NeverAboveOnOneDay(uint256[5] memory amounts) external {
        uint256 moved = 0;
        for (uint256 i = 0; i < amounts.length; ++i) {
            uint256 amount = _bound(amounts[i], 0, 120);
            if (moved + amount > LEFT) {
                _expectCeilingExceeded(LEFT - moved, amount);
                _debit(bytes32(i), amount);
            } else {
                _debit(bytes32(i), amount);
                moved += amount;
            }
            vm.assertEq(escrow.leftToday(), LEFT - moved);
        }
        vm.assertEq(escrow.creditOf(gpu1), moved);
    }

    // ------------------------------------------------------ setDailyCeiling

    function test_TakesEffectAtOnce() external {
        _debit("1", 60);
        _expectEmit();
        emit IInferenceEscrow.DailyCeilingChanged(LEFT, 200);
        _setCeiling(200);
        vm.assertEq(escrow.leftToday(), 140);
        _debit("2", 140);
    }

    function test_BelowWhatWasDebited() external {
        _debit("1", 60);
        _setCeiling(59);
        vm.assertEq(escrow.leftToday(), 0);
        _expectCeilingExceeded(0, 1);
        _debit("2", 1);
    }

    function test_ZeroStopsDebitsAndNoWithdrawals() external {
        _setCeiling(0);
        _expectCeilingExceeded(0, 1);
        _debit("1", 1);
        vm.prank(alice);
        escrow.requestWithdrawal(1000);
        vm.warp(NOON + WITHDRAWAL_DELAY);
        vm.prank(alice);
        escrow.withdraw(alice);
        vm.assertEq(far.balanceOf(alice), FUNDS);
    }

    function test_TheMost() external {
        _setCeiling(type(uint96).max);
        vm.assertEq(escrow.leftToday(), type(uint96).max);
    }

    function test_RevertWhen_TooLarge() external {
        uint256 ceiling = uint256(type(uint96).max) + 1;
        _expectTooLarge(ceiling);
        _setCeiling(ceiling);
    }

    // -------------------------------------------------------------- helpers

    function _setCeiling(uint256 ceiling) private {
        vm.prank(admin);
        escrow.setDailyCeiling(ceiling);
    }

    function _debit(bytes32 batchId, uint256 amount) private {
        _settle(batchId, _debits(alice, amount), _credits(gpu1, amount), 0);
    }
}
