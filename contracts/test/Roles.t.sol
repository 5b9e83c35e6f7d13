// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {InferenceEscrow} from "../src/InferenceEscrow.sol";
import {IInferenceEscrow} from "../src/interfaces/IInferenceEscrow.sol";
import {EscrowTest} from "./utils/EscrowTest.sol";
import {
    IAccessControlDefaultAdminRules
} from "@openzeppelin/contracts/access/extensions/IAccessControlDefaultAdminRules.sol";
import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";

contract RolesTest is EscrowTest {
    bytes32 private constant ADMIN = 0;
    bytes32 private constant SETTLER = keccak256("SETTLER_ROLE");
    bytes32 private constant PAUSER = keccak256("PAUSER_ROLE");

    // ---------------------------------------------------------- constructor

    function test_ConstructorSetsAll() external {
        vm.warp(START + 7);
        InferenceEscrow made = _deploy(far);
        vm.assertEq(address(made.token()), address(far));
        vm.assertEq(made.WITHDRAWAL_DELAY(), WITHDRAWAL_DELAY);
        vm.assertEq(made.DORMANCY(), DORMANCY);
        vm.assertEq(made.CANCEL_DELAY(), 1 days);
        vm.assertEq(made.dailyCeiling(), CEILING);
        vm.assertEq(made.lastSettledAt(), START + 7);
        vm.assertEq(made.feeRecipient(), treasury);
        vm.assertEq(made.defaultAdmin(), admin);
        vm.assertEq(made.defaultAdminDelay(), ADMIN_DELAY);
        vm.assertEq(made.SETTLER_ROLE(), SETTLER);
        vm.assertEq(made.PAUSER_ROLE(), PAUSER);
        vm.assertTrue(made.hasRole(SETTLER, settler));
        vm.assertTrue(made.hasRole(PAUSER, pauser));
        vm.assertFalse(made.hasRole(ADMIN, address(this)));
        vm.assertFalse(made.hasRole(SETTLER, address(this)));
        vm.assertFalse(made.hasRole(PAUSER, address(this)));
        vm.assertFalse(made.paused());
        vm.assertFalse(made.dormant());
    }

    function test_TermsAtTheirBounds() external {
        this.deploy(far, IInferenceEscrow.Terms(1, 2, 0), _roles());
        IInferenceEscrow.Roles memory roles = _roles();
        roles.adminDelay = 30 days;
        this.deploy(far, IInferenceEscrow.Terms(30 days, 90 days, type(uint96).max), roles);
        roles.adminDelay = 1;
        this.deploy(far, _terms(), roles);
    }

    function test_RevertWhen_TermsAreOutOfBounds() external {
        _refuseTerms(0, DORMANCY);
        _refuseTerms(30 days + 1, 90 days);
        _refuseTerms(WITHDRAWAL_DELAY, WITHDRAWAL_DELAY);
        _refuseTerms(WITHDRAWAL_DELAY, WITHDRAWAL_DELAY - 1);
        _refuseTerms(WITHDRAWAL_DELAY, 90 days + 1);
        _refuseTerms(type(uint256).max, type(uint256).max);
        IInferenceEscrow.Roles memory roles = _roles();
        roles.adminDelay = 0;
        _refuse(roles);
        roles.adminDelay = 30 days + 1;
        _refuse(roles);
    }

    function test_RevertWhen_CeilingIsTooLarge() external {
        uint256 ceiling = uint256(type(uint96).max) + 1;
        _expectTooLarge(ceiling);
        this.deploy(far, IInferenceEscrow.Terms(WITHDRAWAL_DELAY, DORMANCY, ceiling), _roles());
    }

    function test_RevertWhen_SomethingIsZero() external {
        _expectRevert(IInferenceEscrow.InferenceEscrow_ZeroAddress.selector);
        this.deploy(IERC20(address(0)), _terms(), _roles());

        IInferenceEscrow.Roles memory roles = _roles();
        roles.settler = address(0);
        _refuseZero(roles);
        roles = _roles();
        roles.pauser = address(0);
        _refuseZero(roles);
        roles = _roles();
        roles.feeRecipient = address(0);
        _refuseZero(roles);
        roles = _roles();
        roles.admin = address(0);
        vm.expectRevert(
            abi.encodeWithSelector(
                IAccessControlDefaultAdminRules.AccessControlInvalidDefaultAdmin.selector,
                address(0)
            )
        );
        this.deploy(far, _terms(), roles);
    }

    // ---------------------------------------------------------------- roles

    function test_OnlyTheSettlerSettles() external {
        address[3] memory others = [stranger, admin, pauser];
        for (uint256 i = 0; i < others.length; ++i) {
            _expectWithoutRole(others[i], SETTLER);
            vm.prank(others[i]);
            escrow.settle(BATCH, _none(), _none(), 0, ROOT);
            _expectWithoutRole(others[i], SETTLER);
            vm.prank(others[i]);
            escrow.releaseMultiple(alice, REQUEST, _array(stranger), _array(uint256(1)));
            _expectWithoutRole(others[i], SETTLER);
            vm.prank(others[i]);
            escrow.releaseBatch(new IInferenceEscrow.Release[](0));
        }
    }

    function test_OnlyThePauserPauses() external {
        address[3] memory others = [stranger, admin, settler];
        for (uint256 i = 0; i < others.length; ++i) {
            _expectWithoutRole(others[i], PAUSER);
            vm.prank(others[i]);
            escrow.pause();
            _expectWithoutRole(others[i], PAUSER);
            vm.prank(others[i]);
            escrow.unpause();
        }
    }

    function test_OnlyTheAdminAdministers() external {
        address[3] memory others = [stranger, settler, pauser];
        for (uint256 i = 0; i < others.length; ++i) {
            _expectWithoutRole(others[i], ADMIN);
            vm.prank(others[i]);
            escrow.setFeeRecipient(stranger);
            _expectWithoutRole(others[i], ADMIN);
            vm.prank(others[i]);
            escrow.setDailyCeiling(1);
            _expectWithoutRole(others[i], ADMIN);
            vm.prank(others[i]);
            escrow.grantRole(SETTLER, stranger);
            _expectWithoutRole(others[i], ADMIN);
            vm.prank(others[i]);
            escrow.beginDefaultAdminTransfer(stranger);
            _expectWithoutRole(others[i], ADMIN);
            vm.prank(others[i]);
            escrow.changeDefaultAdminDelay(1 days);
        }
    }

    function test_AdminReplacesTheSettler() external {
        vm.prank(admin);
        escrow.revokeRole(SETTLER, settler);
        vm.prank(admin);
        escrow.grantRole(SETTLER, stranger);

        IInferenceEscrow.Line[] memory none = _none();
        _expectWithoutRole(settler, SETTLER);
        _settle(BATCH, none, _none(), 0);
        vm.prank(stranger);
        escrow.settle(BATCH, none, _none(), 0, ROOT);
        vm.assertTrue(escrow.batchSettled(BATCH));
    }

    function test_SettlersAndPausersMayResign() external {
        vm.prank(settler);
        escrow.renounceRole(SETTLER, settler);
        vm.assertFalse(escrow.hasRole(SETTLER, settler));
        vm.prank(pauser);
        escrow.renounceRole(PAUSER, pauser);
        vm.assertFalse(escrow.hasRole(PAUSER, pauser));
    }

    // ---------------------------------------------------- the admin's place

    function test_AdminPassesOnAfterTheDelay() external {
        vm.prank(admin);
        escrow.beginDefaultAdminTransfer(bob);
        vm.warp(START + ADMIN_DELAY);
        vm.expectRevert(
            abi.encodeWithSelector(
                IAccessControlDefaultAdminRules.AccessControlEnforcedDefaultAdminDelay.selector,
                START + ADMIN_DELAY
            )
        );
        vm.prank(bob);
        escrow.acceptDefaultAdminTransfer();

        vm.warp(START + ADMIN_DELAY + 1);
        vm.prank(bob);
        escrow.acceptDefaultAdminTransfer();
        vm.assertEq(escrow.defaultAdmin(), bob);
        vm.assertFalse(escrow.hasRole(ADMIN, admin));
    }

    function test_RevertWhen_AdminRenounces() external {
        vm.prank(admin);
        escrow.beginDefaultAdminTransfer(address(0));
        vm.warp(START + ADMIN_DELAY + 1);
        _expectRevert(IInferenceEscrow.InferenceEscrow_AdminRequired.selector);
        vm.prank(admin);
        escrow.renounceRole(ADMIN, admin);
        vm.assertEq(escrow.defaultAdmin(), admin);
    }

    function test_AdminDelayStaysWithinItsBounds() external {
        _refuseDelay(0);
        _refuseDelay(30 days + 1);
        _refuseDelay(type(uint48).max);
        _changeDelay(30 days);
        (uint48 delay,) = escrow.pendingDefaultAdminDelay();
        vm.assertEq(delay, 30 days);
        _changeDelay(1);
        vm.warp(START + ADMIN_DELAY);
        vm.assertEq(escrow.defaultAdminDelay(), 1);
    }

    // ------------------------------------------------------ setFeeRecipient

    function test_SetFeeRecipient() external {
        _prepay(alice, 20);
        _settle("before", _debits(alice, 10), _credits(gpu1, 9), 1);

        _expectEmit();
        emit IInferenceEscrow.FeeRecipientChanged(treasury, stranger);
        vm.prank(admin);
        escrow.setFeeRecipient(stranger);

        _settle("after", _debits(alice, 10), _credits(gpu1, 8), 2);
        vm.assertEq(escrow.creditOf(treasury), 1);
        vm.assertEq(escrow.creditOf(stranger), 2);
    }

    function test_RevertWhen_FeeRecipientIsZero() external {
        _expectRevert(IInferenceEscrow.InferenceEscrow_ZeroAddress.selector);
        vm.prank(admin);
        escrow.setFeeRecipient(address(0));
    }

    function test_RevertWhen_FeeRecipientIsEscrow() external {
        _expectRevert(IInferenceEscrow.InferenceEscrow_RecipientIsEscrow.selector);
        vm.prank(admin);
        escrow.setFeeRecipient(address(escrow));
    }

    // -------------------------------------------------------------- helpers

    /// @dev From outside, so that a constructor's revert ends a call and not the test.
    function deploy(
        IERC20 token,
        IInferenceEscrow.Terms calldata terms,
        IInferenceEscrow.Roles calldata roles
    ) external returns (InferenceEscrow) {
        return new InferenceEscrow(token, terms, roles);
    }

    function _refuseTerms(uint256 withdrawalDelay, uint256 dormancy) private {
        _expectRevert(IInferenceEscrow.InferenceEscrow_TermsInvalid.selector);
        this.deploy(far, IInferenceEscrow.Terms(withdrawalDelay, dormancy, CEILING), _roles());
    }

    function _refuse(IInferenceEscrow.Roles memory roles) private {
        _expectRevert(IInferenceEscrow.InferenceEscrow_TermsInvalid.selector);
        this.deploy(far, _terms(), roles);
    }

    function _changeDelay(uint48 delay) private {
        vm.prank(admin);
        escrow.changeDefaultAdminDelay(delay);
    }

    function _refuseDelay(uint48 delay) private {
        _expectRevert(IInferenceEscrow.InferenceEscrow_TermsInvalid.selector);
        _changeDelay(delay);
    }

    function _refuseZero(IInferenceEscrow.Roles memory roles) private {
        _expectRevert(IInferenceEscrow.InferenceEscrow_ZeroAddress.selector);
        this.deploy(far, _terms(), roles);
    }
}
