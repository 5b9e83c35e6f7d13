// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {FarToken} from "../../src/FarToken.sol";
import {InferenceEscrow} from "../../src/InferenceEscrow.sol";
import {IInferenceEscrow} from "../../src/interfaces/IInferenceEscrow.sol";
import {Test} from "./Test.sol";
import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";

/// @notice The stage of every escrow test: two users with tokens, two providers with none.
abstract contract EscrowTest is Test {
    uint256 internal constant FUNDS = 1000e18;
    bytes32 internal constant BATCH = "batch 1";
    bytes32 internal constant REQUEST = "request 1";

    address internal operator = _account("operator");
    address internal treasury = _account("treasury");
    address internal alice = _account("alice");
    address internal bob = _account("bob");
    address internal gpu1 = _account("gpu1");
    address internal gpu2 = _account("gpu2");
    address internal stranger = _account("stranger");

    FarToken internal far;
    InferenceEscrow internal escrow;

    function setUp() public virtual {
        far = new FarToken(address(this));
        escrow = _deploy(far);
        _fund(alice);
        _fund(bob);
    }

    function _deploy(IERC20 token) internal returns (InferenceEscrow) {
        return new InferenceEscrow(token, operator, treasury);
    }

    function _fund(address user) private {
        require(far.transfer(user, FUNDS));
        vm.prank(user);
        far.approve(address(escrow), type(uint256).max);
    }

    // -------------------------------------------------------------- actions

    function _deposit(address user, uint256 amount) internal {
        vm.prank(user);
        escrow.deposit(amount);
    }

    /// @dev Credits `gpu1` with `amount` out of alice's deposit.
    function _earn(bytes32 batchId, uint256 amount) internal {
        _deposit(alice, amount);
        vm.prank(operator);
        escrow.settle(batchId, _debits(alice, amount), _credits(gpu1, amount), 0);
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
        vm.prank(operator);
        escrow.releaseMultiple(user, requestId, _array(provider), _array(amount));
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

    function _assertState(
        IInferenceEscrow.EscrowState actual,
        IInferenceEscrow.EscrowState expected
    ) internal pure {
        vm.assertEq(uint256(actual), uint256(expected));
    }

    // --------------------------------------------------------------- arrays

    function _debits(address user, uint256 amount)
        internal
        pure
        returns (IInferenceEscrow.Debit[] memory debits)
    {
        debits = new IInferenceEscrow.Debit[](1);
        debits[0] = IInferenceEscrow.Debit(user, amount);
    }

    function _debits(address user, uint256 amount, address user2, uint256 amount2)
        internal
        pure
        returns (IInferenceEscrow.Debit[] memory debits)
    {
        debits = new IInferenceEscrow.Debit[](2);
        debits[0] = IInferenceEscrow.Debit(user, amount);
        debits[1] = IInferenceEscrow.Debit(user2, amount2);
    }

    function _credits(address provider, uint256 amount)
        internal
        pure
        returns (IInferenceEscrow.Credit[] memory credits)
    {
        credits = new IInferenceEscrow.Credit[](1);
        credits[0] = IInferenceEscrow.Credit(provider, amount);
    }

    function _credits(address provider, uint256 amount, address provider2, uint256 amount2)
        internal
        pure
        returns (IInferenceEscrow.Credit[] memory credits)
    {
        credits = new IInferenceEscrow.Credit[](2);
        credits[0] = IInferenceEscrow.Credit(provider, amount);
        credits[1] = IInferenceEscrow.Credit(provider2, amount2);
    }

    function _array(address a) internal pure returns (address[] memory array) {
        array = new address[](1);
        array[0] = a;
    }

    function _array(address a, address b) internal pure returns (address[] memory array) {
        array = new address[](2);
        array[0] = a;
        array[1] = b;
    }

    function _array(uint256 a) internal pure returns (uint256[] memory array) {
        array = new uint256[](1);
        array[0] = a;
    }

    function _array(uint256 a, uint256 b) internal pure returns (uint256[] memory array) {
        array = new uint256[](2);
        array[0] = a;
        array[1] = b;
    }
}
