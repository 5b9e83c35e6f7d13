// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {InferenceEscrow} from "../src/InferenceEscrow.sol";
import {IInferenceEscrow} from "../src/interfaces/IInferenceEscrow.sol";
import {EscrowTest} from "./utils/EscrowTest.sol";
import {Ownable} from "@openzeppelin/contracts/access/Ownable.sol";
import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";

/// constructor
/// ├── when the token, the operator or the fee recipient is the zero address: it reverts
/// └── it sets the three
/// setFeeRecipient
/// ├── when the caller is not the owner: it reverts
/// ├── when the recipient is the zero address: it reverts
/// └── it sends later fees there, and leaves earlier ones
/// ownership
/// ├── it passes in two steps
/// └── it cannot be renounced
contract OwnerTest is EscrowTest {
    function test_ConstructorSetsAll() external view {
        vm.assertEq(address(escrow.token()), address(far));
        vm.assertEq(escrow.owner(), operator);
        vm.assertEq(escrow.feeRecipient(), treasury);
    }

    function test_RevertWhen_TokenIsZero() external {
        _expectRevert(IInferenceEscrow.InferenceEscrow_ZeroAddress.selector);
        new InferenceEscrow(IERC20(address(0)), operator, treasury);
    }

    function test_RevertWhen_OperatorIsZero() external {
        vm.expectRevert(abi.encodeWithSelector(Ownable.OwnableInvalidOwner.selector, address(0)));
        new InferenceEscrow(far, address(0), treasury);
    }

    function test_RevertWhen_FirstFeeRecipientIsZero() external {
        _expectRevert(IInferenceEscrow.InferenceEscrow_ZeroAddress.selector);
        new InferenceEscrow(far, operator, address(0));
    }

    function test_SetFeeRecipient() external {
        _deposit(alice, 20);
        vm.prank(operator);
        escrow.settle("before", _debits(alice, 10), _credits(gpu1, 9), 1);

        _expectEmit();
        emit IInferenceEscrow.FeeRecipientChanged(treasury, stranger);
        vm.prank(operator);
        escrow.setFeeRecipient(stranger);

        vm.prank(operator);
        escrow.settle("after", _debits(alice, 10), _credits(gpu1, 8), 2);
        vm.assertEq(escrow.creditOf(treasury), 1);
        vm.assertEq(escrow.creditOf(stranger), 2);
    }

    function test_RevertWhen_FeeRecipientIsZero() external {
        _expectRevert(IInferenceEscrow.InferenceEscrow_ZeroAddress.selector);
        vm.prank(operator);
        escrow.setFeeRecipient(address(0));
    }

    function test_RevertWhen_StrangerSetsFeeRecipient() external {
        _expectNotOwner(stranger);
        vm.prank(stranger);
        escrow.setFeeRecipient(stranger);
    }

    function test_OwnershipPassesInTwoSteps() external {
        vm.prank(operator);
        escrow.transferOwnership(bob);
        vm.assertEq(escrow.owner(), operator);

        vm.prank(bob);
        escrow.acceptOwnership();
        vm.assertEq(escrow.owner(), bob);
    }

    function test_RevertWhen_OwnershipIsRenounced() external {
        _expectRevert(IInferenceEscrow.InferenceEscrow_OperatorRequired.selector);
        vm.prank(operator);
        escrow.renounceOwnership();
    }

    function test_RevertWhen_StrangerSettles() external {
        _expectNotOwner(stranger);
        vm.prank(stranger);
        escrow.settle(BATCH, new IInferenceEscrow.Debit[](0), new IInferenceEscrow.Credit[](0), 0);
    }

    function test_RevertWhen_StrangerReleases() external {
        _expectNotOwner(stranger);
        vm.prank(stranger);
        escrow.releaseMultiple(alice, REQUEST, _array(stranger), _array(uint256(1)));
    }

    function test_RevertWhen_StrangerReleasesBatch() external {
        _expectNotOwner(stranger);
        vm.prank(stranger);
        escrow.releaseBatch(new IInferenceEscrow.Release[](0));
    }

    function _expectNotOwner(address caller) private {
        vm.expectRevert(abi.encodeWithSelector(Ownable.OwnableUnauthorizedAccount.selector, caller));
    }
}
