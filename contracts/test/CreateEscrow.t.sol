// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {InferenceEscrow} from "../src/InferenceEscrow.sol";
import {IInferenceEscrow} from "../src/interfaces/IInferenceEscrow.sol";
import {CallbackToken} from "./mocks/CallbackToken.sol";
import {FeeToken} from "./mocks/FeeToken.sol";
import {EscrowTest} from "./utils/EscrowTest.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";

contract CreateEscrowTest is EscrowTest {
    uint256 private constant AMOUNT = 100;

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
        _cancel(settler, alice);
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
        _expectRevert(ReentrancyGuardTransient.ReentrancyGuardReentrantCall.selector);
        target.createEscrow(REQUEST, AMOUNT);
    }

    function _expectExists(bytes32 escrowId) private {
        vm.expectRevert(
            abi.encodeWithSelector(IInferenceEscrow.InferenceEscrow_EscrowExists.selector, escrowId)
        );
    }
}
