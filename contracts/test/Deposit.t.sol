// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {InferenceEscrow} from "../src/InferenceEscrow.sol";
import {IInferenceEscrow} from "../src/interfaces/IInferenceEscrow.sol";
import {CallbackToken} from "./mocks/CallbackToken.sol";
import {FeeToken} from "./mocks/FeeToken.sol";
import {HugeToken} from "./mocks/HugeToken.sol";
import {SilentToken} from "./mocks/SilentToken.sol";
import {EscrowTest} from "./utils/EscrowTest.sol";
import {IERC20Errors} from "@openzeppelin/contracts/interfaces/draft-IERC6093.sol";
import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";

contract DepositTest is EscrowTest {
    bytes32 private constant PERMIT = keccak256(
        "Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)"
    );
    uint256 private constant LIMIT = type(uint96).max;

    function testFuzz_Deposit(uint256 first, uint256 second) external {
        first = _bound(first, 1, FUNDS - 1);
        second = _bound(second, 1, FUNDS - first);

        _expectEmit();
        emit IInferenceEscrow.Deposited(alice, alice, first);
        _deposit(alice, first);
        _deposit(alice, second);

        vm.assertEq(escrow.depositOf(alice), first + second);
        vm.assertEq(escrow.totalDeposits(), first + second);
        vm.assertEq(far.balanceOf(address(escrow)), first + second);
        _assertCap(alice, 0, 0);
    }

    function test_DepositFor() external {
        _expectEmit();
        emit IInferenceEscrow.Deposited(alice, bob, 5e18);
        vm.prank(alice);
        escrow.depositFor(bob, 5e18);

        vm.assertEq(escrow.depositOf(bob), 5e18);
        vm.assertEq(escrow.depositOf(alice), 0);
        vm.assertEq(escrow.totalDeposits(), 5e18);
        vm.assertEq(far.balanceOf(alice), FUNDS - 5e18);
    }

    function test_IgnoresTokensSentUnasked() external {
        vm.prank(bob);
        require(far.transfer(address(escrow), 7e18));
        _deposit(alice, 5e18);
        vm.assertEq(escrow.depositOf(alice), 5e18);
        vm.assertEq(escrow.totalDeposits(), 5e18);
    }

    function test_DepositForLeavesTheWithdrawalAlone() external {
        _deposit(alice, 10);
        vm.prank(alice);
        escrow.requestWithdrawal(10);
        vm.warp(block.timestamp + WITHDRAWAL_DELAY - 1);
        vm.prank(bob);
        escrow.depositFor(alice, 5);

        vm.assertEq(escrow.withdrawalOf(alice).amount, 10);
        vm.assertEq(escrow.withdrawalOf(alice).readyAt, START + WITHDRAWAL_DELAY);
        vm.warp(block.timestamp + 1);
        vm.prank(alice);
        escrow.withdraw(alice);
        vm.assertEq(escrow.depositOf(alice), 5);
    }

    function test_RevertWhen_AmountIsZero() external {
        _expectRevert(IInferenceEscrow.InferenceEscrow_ZeroAmount.selector);
        _deposit(alice, 0);
    }

    function test_RevertWhen_UserIsZero() external {
        _expectRevert(IInferenceEscrow.InferenceEscrow_ZeroAddress.selector);
        vm.prank(alice);
        escrow.depositFor(address(0), 1);
    }

    function test_RevertWhen_UserIsEscrow() external {
        _expectRevert(IInferenceEscrow.InferenceEscrow_RecipientIsEscrow.selector);
        vm.prank(alice);
        escrow.depositFor(address(escrow), 1);
    }

    function test_RevertWhen_TokenTakesFee() external {
        FeeToken token = new FeeToken();
        InferenceEscrow feeEscrow = _deploy(token);
        token.approve(address(feeEscrow), 100);
        _expectInexact(100, 99);
        feeEscrow.deposit(100);
    }

    function test_RevertWhen_MoreArrives() external {
        CallbackToken token = new CallbackToken();
        InferenceEscrow target = _deploy(token);
        token.approve(address(target), 100);
        token.giftWithNextTransfer(address(target), 1);
        _expectInexact(100, 101);
        target.deposit(100);
    }

    function test_RevertWhen_OneDepositIsTooLarge() external {
        HugeToken token = new HugeToken();
        InferenceEscrow target = _deploy(token);
        token.approve(address(target), type(uint256).max);
        _expectTooLarge(LIMIT + 1);
        target.deposit(LIMIT + 1);
    }

    /// @dev A deposit, a credit and an escrow, and one unit less than there is room for.
    function test_RevertWhen_TheWholeIsTooLarge() external {
        HugeToken token = new HugeToken();
        InferenceEscrow target = _deploy(token);
        token.approve(address(target), type(uint256).max);
        target.createEscrow("released", 30);
        target.createEscrow("open", 500);
        vm.prank(settler);
        target.releaseMultiple(address(this), "released", _array(gpu1), _array(uint256(30)));
        target.deposit(7);

        uint256 room = LIMIT - 537;
        _expectTooLarge(room + 1);
        target.deposit(room + 1);
        target.deposit(room);
        vm.assertEq(target.depositOf(address(this)), room + 7);
        _expectTooLarge(1);
        target.createEscrow("one more", 1);
    }

    function test_RevertWhen_TokenReenters() external {
        CallbackToken token = new CallbackToken();
        InferenceEscrow target = _deploy(token);
        token.approve(address(target), 100);
        token.callback(address(target), abi.encodeCall(target.deposit, (1)));
        _expectRevert(ReentrancyGuardTransient.ReentrancyGuardReentrantCall.selector);
        target.deposit(100);
    }

    // ---------------------------------------------------- depositWithPermit

    function test_Permit() external {
        _forgetApproval();
        (uint8 v, bytes32 r, bytes32 s) = _signPermit("alice", 40);
        vm.prank(alice);
        escrow.depositWithPermit(40, block.timestamp, v, r, s);
        vm.assertEq(escrow.depositOf(alice), 40);
        vm.assertEq(far.allowance(alice, address(escrow)), 0);
    }

    function test_PermitWasSubmittedBefore() external {
        _forgetApproval();
        (uint8 v, bytes32 r, bytes32 s) = _signPermit("alice", 40);
        vm.prank(stranger);
        far.permit(alice, address(escrow), 40, block.timestamp, v, r, s);

        vm.prank(alice);
        escrow.depositWithPermit(40, block.timestamp, v, r, s);
        vm.assertEq(escrow.depositOf(alice), 40);
    }

    function test_BadPermitAndApprovedBefore() external {
        (uint8 v, bytes32 r, bytes32 s) = _signPermit("bob", 40);
        vm.prank(alice);
        escrow.depositWithPermit(40, block.timestamp, v, r, s);
        vm.assertEq(escrow.depositOf(alice), 40);
    }

    function test_RevertWhen_BadPermitAndNoAllowance() external {
        _forgetApproval();
        (uint8 v, bytes32 r, bytes32 s) = _signPermit("bob", 40);
        vm.expectRevert(
            abi.encodeWithSelector(
                IERC20Errors.ERC20InsufficientAllowance.selector, address(escrow), 0, 40
            )
        );
        vm.prank(alice);
        escrow.depositWithPermit(40, block.timestamp, v, r, s);
    }

    function test_TokenWithoutPermit() external {
        SilentToken token = new SilentToken();
        InferenceEscrow target = _deploy(IERC20(address(token)));
        token.approve(address(target), 40);
        target.depositWithPermit(40, block.timestamp, 27, 0, 0);
        vm.assertEq(target.depositOf(address(this)), 40);
    }

    // -------------------------------------------------------------- helpers

    function _forgetApproval() private {
        vm.prank(alice);
        far.approve(address(escrow), 0);
    }

    function _signPermit(string memory signer, uint256 amount)
        private
        view
        returns (uint8 v, bytes32 r, bytes32 s)
    {
        bytes32 permit = keccak256(
            abi.encode(PERMIT, alice, address(escrow), amount, far.nonces(alice), block.timestamp)
        );
        bytes memory message = abi.encodePacked("\x19\x01", far.DOMAIN_SEPARATOR(), permit);
        return vm.sign(_keyOf(signer), keccak256(message));
    }

    function _expectInexact(uint256 expected, uint256 received) private {
        vm.expectRevert(
            abi.encodeWithSelector(
                IInferenceEscrow.InferenceEscrow_InexactTransfer.selector, expected, received
            )
        );
    }
}
