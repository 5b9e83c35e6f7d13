// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {FarToken} from "../../src/FarToken.sol";
import {InferenceEscrow} from "../../src/InferenceEscrow.sol";
import {IInferenceEscrow} from "../../src/interfaces/IInferenceEscrow.sol";
import {Lines} from "./Lines.sol";
import {Test} from "./Test.sol";
import {IAccessControl} from "@openzeppelin/contracts/access/IAccessControl.sol";
import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {Pausable} from "@openzeppelin/contracts/utils/Pausable.sol";

/// @notice The stage of every escrow test: two users with tokens, two providers with none.
abstract contract EscrowTest is Test, Lines {
    uint256 internal constant START = 1_800_000_000;
    uint256 internal constant DAY = 1 days;
    uint256 internal constant FUNDS = 1000e18;
    uint256 internal constant CEILING = 5000e18;
    uint256 internal constant WITHDRAWAL_DELAY = 2 days;
    uint64 internal constant READY_AT = 1_800_000_000 + 2 days; // of what is asked for at the start
    uint256 internal constant DORMANCY = 14 days;
    uint48 internal constant ADMIN_DELAY = 3 days;

    bytes32 internal constant BATCH = "batch 1";
    bytes32 internal constant REQUEST = "request 1";
    bytes32 internal constant ROOT = "usage root";

    address internal admin = _account("admin");
    address internal settler = _account("settler");
    address internal pauser = _account("pauser");
    address internal treasury = _account("treasury");
    address internal alice = _account("alice");
    address internal bob = _account("bob");
    address internal gpu1 = _account("gpu1");
    address internal gpu2 = _account("gpu2");
    address internal stranger = _account("stranger");

    FarToken internal far;
    InferenceEscrow internal escrow;

    function setUp() public virtual {
        vm.warp(START);
        far = new FarToken(address(this));
        escrow = _deploy(far);
        _fund(alice);
        _fund(bob);
    }

    function _deploy(IERC20 token) internal returns (InferenceEscrow) {
        return new InferenceEscrow(token, _terms(), _roles());
    }

    function _terms() internal pure returns (IInferenceEscrow.Terms memory) {
        return IInferenceEscrow.Terms(WITHDRAWAL_DELAY, DORMANCY, CEILING);
    }

    function _roles() internal view returns (IInferenceEscrow.Roles memory) {
        return IInferenceEscrow.Roles(admin, ADMIN_DELAY, settler, pauser, treasury);
    }

    function _fund(address user) internal {
        require(far.transfer(user, FUNDS));
        vm.prank(user);
        far.approve(address(escrow), type(uint256).max);
    }

    // -------------------------------------------------------------- actions

    function _deposit(address user, uint256 amount) internal {
        vm.prank(user);
        escrow.deposit(amount);
    }

    /// @dev A deposit that may be spent: alice's or bob's.
    function _prepay(address user, uint256 amount) internal {
        _deposit(user, amount);
        (uint256 maximum,) = escrow.capOf(user);
        _raiseCap(user, maximum + amount);
    }

    function _raiseCap(address user, uint256 maximum) internal {
        escrow.raiseCap(user, maximum, block.timestamp, _signCap(user, maximum, block.timestamp));
    }

    /// @dev Signed by the user over its next nonce.
    function _signCap(address user, uint256 maximum, uint256 deadline)
        internal
        view
        returns (bytes memory)
    {
        uint256 key = _keyOf(user == alice ? "alice" : "bob");
        return _sign(key, escrow.capDigest(user, maximum, deadline, escrow.nonces(user)));
    }

    function _settle(
        bytes32 batchId,
        IInferenceEscrow.Line[] memory debits,
        IInferenceEscrow.Line[] memory credits,
        uint256 fee
    ) internal {
        vm.prank(settler);
        escrow.settle(batchId, debits, credits, fee, ROOT);
    }

    /// @dev Credits `gpu1` with `amount` out of alice's deposit.
    function _earn(bytes32 batchId, uint256 amount) internal {
        _prepay(alice, amount);
        _settle(batchId, _debits(alice, amount), _credits(gpu1, amount), 0);
    }

    function _createEscrow(address user, bytes32 requestId, uint256 amount)
        internal
        returns (bytes32 escrowId)
    {
        vm.prank(user);
        escrow.createEscrow(requestId, amount);
        return escrow.escrowIdOf(user, requestId);
    }

    function _release(address user, bytes32 requestId, address provider, uint256 amount) internal {
        vm.prank(settler);
        escrow.releaseMultiple(user, requestId, _array(provider), _array(amount));
    }

    function _cancel(address caller, address user) internal {
        vm.prank(caller);
        escrow.cancel(user, REQUEST);
    }

    function _stateOf(address user, bytes32 requestId)
        internal
        view
        returns (IInferenceEscrow.EscrowState)
    {
        return escrow.escrowOf(user, requestId).state;
    }

    // --------------------------------------------------------- expectations

    function _expectEmit() internal {
        vm.expectEmit(address(escrow));
    }

    function _expectNotOpen(bytes32 escrowId, IInferenceEscrow.EscrowState state) internal {
        vm.expectRevert(
            abi.encodeWithSelector(
                IInferenceEscrow.InferenceEscrow_EscrowNotOpen.selector, escrowId, state
            )
        );
    }

    function _expectRevert(bytes4 selector) internal {
        vm.expectRevert(abi.encodeWithSelector(selector));
    }

    function _expectTooLarge(uint256 amount) internal {
        vm.expectRevert(
            abi.encodeWithSelector(IInferenceEscrow.InferenceEscrow_AmountTooLarge.selector, amount)
        );
    }

    function _expectInsufficient(address user, uint256 left, uint256 asked) internal {
        vm.expectRevert(
            abi.encodeWithSelector(
                IInferenceEscrow.InferenceEscrow_InsufficientDeposit.selector, user, left, asked
            )
        );
    }

    function _expectNothingRequested(address user) internal {
        vm.expectRevert(
            abi.encodeWithSelector(IInferenceEscrow.InferenceEscrow_NothingRequested.selector, user)
        );
    }

    function _expectTooEarly(uint256 readyAt) internal {
        vm.expectRevert(
            abi.encodeWithSelector(IInferenceEscrow.InferenceEscrow_TooEarly.selector, readyAt)
        );
    }

    function _expectCeilingExceeded(uint256 left, uint256 debited) internal {
        vm.expectRevert(
            abi.encodeWithSelector(
                IInferenceEscrow.InferenceEscrow_DailyCeilingExceeded.selector, left, debited
            )
        );
    }

    function _expectPaused() internal {
        _expectRevert(Pausable.EnforcedPause.selector);
    }

    function _expectWithoutRole(address caller, bytes32 role) internal {
        vm.expectRevert(
            abi.encodeWithSelector(
                IAccessControl.AccessControlUnauthorizedAccount.selector, caller, role
            )
        );
    }

    function _assertState(
        IInferenceEscrow.EscrowState actual,
        IInferenceEscrow.EscrowState expected
    ) internal pure {
        vm.assertEq(uint256(actual), uint256(expected));
    }

    function _assertCap(address user, uint256 maximum, uint256 debited) internal view {
        (uint256 actualMaximum, uint256 actualDebited) = escrow.capOf(user);
        vm.assertEq(actualMaximum, maximum);
        vm.assertEq(actualDebited, debited);
    }
}
