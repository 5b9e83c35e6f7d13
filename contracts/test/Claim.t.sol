// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {InferenceEscrow} from "../src/InferenceEscrow.sol";
import {IInferenceEscrow} from "../src/interfaces/IInferenceEscrow.sol";
import {CallbackToken} from "./mocks/CallbackToken.sol";
import {EscrowTest} from "./utils/EscrowTest.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";

contract ClaimTest is EscrowTest {
    function test_Claim() external {
        _earn("batch 1", 30);
        _earn("batch 2", 12);

        _expectEmit();
        emit IInferenceEscrow.Claimed(gpu1, gpu1, 42);
        vm.prank(gpu1);
        escrow.claim();

        vm.assertEq(far.balanceOf(gpu1), 42);
        vm.assertEq(escrow.creditOf(gpu1), 0);
        vm.assertEq(escrow.earnedOf(gpu1), 42);
        vm.assertEq(escrow.totalCredits(), 0);
        vm.assertEq(far.balanceOf(address(escrow)), 0);
    }

    function test_ClaimTo() external {
        _earn(BATCH, 30);
        _expectEmit();
        emit IInferenceEscrow.Claimed(gpu1, stranger, 30);
        vm.prank(gpu1);
        escrow.claimTo(stranger);
        vm.assertEq(far.balanceOf(stranger), 30);
        vm.assertEq(far.balanceOf(gpu1), 0);
    }

    function testFuzz_EarnedNeverDecreases(uint256 first, uint256 second) external {
        first = _bound(first, 1, FUNDS - 1);
        second = _bound(second, 1, FUNDS - first);
        _earn("batch 1", first);
        vm.prank(gpu1);
        escrow.claim();
        _earn("batch 2", second);

        vm.assertEq(escrow.earnedOf(gpu1), first + second);
        vm.assertEq(escrow.creditOf(gpu1), second);
    }

    function test_RevertWhen_NothingToClaim() external {
        _expectNothingToClaim(gpu1);
        vm.prank(gpu1);
        escrow.claim();
    }

    function test_RevertWhen_ClaimedBefore() external {
        _earn(BATCH, 30);
        vm.prank(gpu1);
        escrow.claim();
        _expectNothingToClaim(gpu1);
        vm.prank(gpu1);
        escrow.claim();
    }

    function test_RevertWhen_RecipientIsZero() external {
        _earn(BATCH, 30);
        _expectRevert(IInferenceEscrow.InferenceEscrow_ZeroAddress.selector);
        vm.prank(gpu1);
        escrow.claimTo(address(0));
    }

    function test_RevertWhen_RecipientIsEscrow() external {
        _earn(BATCH, 30);
        _expectRevert(IInferenceEscrow.InferenceEscrow_RecipientIsEscrow.selector);
        vm.prank(gpu1);
        escrow.claimTo(address(escrow));
    }

    function test_RevertWhen_TokenReenters() external {
        CallbackToken token = new CallbackToken();
        InferenceEscrow target = _deploy(token);
        token.approve(address(target), 100);
        target.createEscrow(REQUEST, 100);
        vm.prank(settler);
        target.cancel(address(this), REQUEST);

        token.callback(address(target), abi.encodeCall(target.claim, ()));
        _expectRevert(ReentrancyGuardTransient.ReentrancyGuardReentrantCall.selector);
        target.claim();
    }

    function _expectNothingToClaim(address account) private {
        vm.expectRevert(
            abi.encodeWithSelector(
                IInferenceEscrow.InferenceEscrow_NothingToClaim.selector, account
            )
        );
    }
}
