// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {InferenceEscrow} from "../src/InferenceEscrow.sol";
import {CallbackToken} from "./mocks/CallbackToken.sol";
import {FalseToken} from "./mocks/FalseToken.sol";
import {SilentToken} from "./mocks/SilentToken.sol";
import {EscrowTest} from "./utils/EscrowTest.sol";
import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";

/// @dev This contract is the user of each hostile token.
contract TokensTest is EscrowTest {
    function test_RevertWhen_FalseComesIn() external {
        FalseToken token = new FalseToken();
        InferenceEscrow target = _deploy(token);
        token.approve(address(target), 100);
        token.refuse(true);
        _expectFailed(address(token));
        target.deposit(100);
        _expectFailed(address(token));
        target.createEscrow(REQUEST, 100);
        vm.assertEq(target.totalDeposits(), 0);
    }

    function test_RevertWhen_FalseGoesOut() external {
        FalseToken token = new FalseToken();
        InferenceEscrow target = _deploy(token);
        _payIn(token, target);
        token.refuse(true);
        _expectFailed(address(token));
        target.withdraw(address(this));
        _expectFailed(address(token));
        target.claim();

        vm.assertEq(target.depositOf(address(this)), 60);
        vm.assertEq(target.creditOf(address(this)), 40);
        token.refuse(false);
        target.withdraw(stranger);
        target.claimTo(stranger);
        vm.assertEq(token.balanceOf(stranger), 100);
    }

    function test_SilentToken() external {
        SilentToken token = new SilentToken();
        InferenceEscrow target = _deploy(IERC20(address(token)));
        _payIn(IERC20(address(token)), target);
        target.withdraw(stranger);
        target.claimTo(stranger);
        vm.assertEq(token.balanceOf(stranger), 100);
        vm.assertEq(token.balanceOf(address(target)), 0);
    }

    function test_RevertWhen_ReenteredOnTheWayIn() external {
        CallbackToken token = new CallbackToken();
        InferenceEscrow target = _deploy(token);
        _payIn(token, target);
        token.approve(address(target), 100);
        bytes[4] memory calls = _guarded(target);
        for (uint256 i = 0; i < calls.length; ++i) {
            token.callback(address(target), calls[i]);
            _expectRevert(ReentrancyGuardTransient.ReentrancyGuardReentrantCall.selector);
            target.deposit(1);
        }
    }

    function test_RevertWhen_ReenteredOnTheWayOut() external {
        CallbackToken token = new CallbackToken();
        InferenceEscrow target = _deploy(token);
        _payIn(token, target);
        bytes[4] memory calls = _guarded(target);
        for (uint256 i = 0; i < calls.length; ++i) {
            token.callback(address(target), calls[i]);
            _expectRevert(ReentrancyGuardTransient.ReentrancyGuardReentrantCall.selector);
            target.withdraw(address(this));
            _expectRevert(ReentrancyGuardTransient.ReentrancyGuardReentrantCall.selector);
            target.claim();
        }
    }

    /// @dev The settler's and everybody's functions that move no tokens are open; a hook that
    /// cancels an escrow under a deposit finds the books right.
    function test_CallingElsewhereOnTheWayIn() external {
        CallbackToken token = new CallbackToken();
        InferenceEscrow target = _deploy(token);
        token.approve(address(target), 100);
        target.createEscrow(REQUEST, 40);
        vm.prank(admin);
        target.grantRole(keccak256("SETTLER_ROLE"), address(token));
        token.callback(address(target), abi.encodeCall(target.cancel, (address(this), REQUEST)));
        target.deposit(60);
        vm.assertEq(target.totalDeposits(), 60);
        vm.assertEq(target.totalCredits(), 40);
        vm.assertEq(target.totalEscrowed(), 0);
        vm.assertEq(token.balanceOf(address(target)), 100);
    }

    /// @dev A deposit of 60 that may be withdrawn, and a credit of 40.
    function _payIn(IERC20 token, InferenceEscrow target) private {
        // A token that returns nothing cannot be called as an IERC20.
        (bool ok,) = address(token).call(abi.encodeCall(token.approve, (address(target), 100)));
        require(ok);
        target.deposit(60);
        target.createEscrow(REQUEST, 40);
        vm.prank(settler);
        target.cancel(address(this), REQUEST);
        target.requestWithdrawal(60);
        vm.warp(START + WITHDRAWAL_DELAY);
    }

    function _guarded(InferenceEscrow target) private view returns (bytes[4] memory calls) {
        calls[0] = abi.encodeCall(target.deposit, (1));
        calls[1] = abi.encodeCall(target.createEscrow, ("another", 1));
        calls[2] = abi.encodeCall(target.withdraw, (address(this)));
        calls[3] = abi.encodeCall(target.claimTo, (address(this)));
    }

    function _expectFailed(address token) private {
        vm.expectRevert(abi.encodeWithSelector(SafeERC20.SafeERC20FailedOperation.selector, token));
    }
}
