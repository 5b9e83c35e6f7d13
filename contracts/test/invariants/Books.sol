// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {FarToken} from "../../src/FarToken.sol";
import {InferenceEscrow} from "../../src/InferenceEscrow.sol";
import {IInferenceEscrow} from "../../src/interfaces/IInferenceEscrow.sol";
import {Lines} from "../utils/Lines.sol";
import {Test} from "../utils/Test.sol";

/// @notice The handlers' own books, to hold the contract's against, and what all of them need.
/// Every actor plays every part, so that one account can be user, provider and fee recipient.
abstract contract Books is Test, Lines {
    struct Request {
        address user;
        bytes32 requestId;
    }

    string[5] private NAMES = ["alice", "bob", "gpu1", "gpu2", "treasury"];

    InferenceEscrow internal immutable escrow;
    FarToken internal immutable far;
    address internal immutable admin;
    address internal immutable settler;
    address internal immutable pauser;

    address[] public actors;
    bytes32[] public batches;
    Request[] public requests;

    /// @dev Tokens sent to the contract without a call.
    uint256 public donated;
    /// @dev By account: prepaid, debited, taken back, earned, got back from escrows, claimed.
    mapping(address user => uint256) public depositedBy;
    mapping(address user => uint256) public debitedFrom;
    mapping(address user => uint256) public withdrawnBy;
    mapping(address account => uint256) public earnedBy;
    mapping(address user => uint256) public refundedTo;
    mapping(address account => uint256) public claimedBy;
    mapping(address user => uint256) public escrowedBy;

    /// @dev The most that a user ever signed.
    mapping(address user => uint256) public highestCap;
    mapping(bytes32 batchId => uint256) public timesSettled;
    mapping(bytes32 batchId => bytes32) public rootOf;
    mapping(bytes32 escrowId => uint256) public timesClosed;

    /// @dev By day: debited and released, and the highest ceiling in force.
    mapping(uint256 day => uint256) public movedOn;
    mapping(uint256 day => uint256) public highestCeilingOn;
    uint256 public lastSettledAt;

    /// @dev What must not have happened.
    bool public earnedDecreased;
    bool public nonceDecreased;
    bool public leftTooEarly;
    bool public movedWhilePaused;
    bool public tookTooMuch;
    bool public heldBack;

    mapping(address account => uint256) private _earnedBefore;
    mapping(address account => uint256) private _nonceBefore;

    constructor(InferenceEscrow escrow_, FarToken far_, address[3] memory roles) {
        escrow = escrow_;
        far = far_;
        (admin, settler, pauser) = (roles[0], roles[1], roles[2]);
        for (uint256 i = 0; i < NAMES.length; ++i) {
            actors.push(_account(NAMES[i]));
        }
        lastSettledAt = block.timestamp;
        _noteCeiling();
    }

    /// @dev After every action, whatever it was, some things are no less than before.
    modifier watched() {
        _noteCeiling();
        _;
        for (uint256 i = 0; i < actors.length; ++i) {
            address actor = actors[i];
            uint256 earned = escrow.earnedOf(actor);
            uint256 nonce = escrow.nonces(actor);
            if (earned < _earnedBefore[actor]) earnedDecreased = true;
            if (nonce < _nonceBefore[actor]) nonceDecreased = true;
            (_earnedBefore[actor], _nonceBefore[actor]) = (earned, nonce);
        }
    }

    modifier whenRunning() {
        if (!escrow.paused()) _;
    }

    function actorCount() external view returns (uint256) {
        return actors.length;
    }

    function batchCount() external view returns (uint256) {
        return batches.length;
    }

    function requestCount() external view returns (uint256) {
        return requests.length;
    }

    function today() public view returns (uint256) {
        return block.timestamp / 1 days;
    }

    // ------------------------------------------------------------- internal

    function _actor(uint256 seed) internal view returns (address) {
        return actors[seed % actors.length];
    }

    function _actorKey(uint256 seed) internal view returns (uint256) {
        return _keyOf(NAMES[seed % NAMES.length]);
    }

    function _noteCeiling() internal {
        uint256 ceiling = escrow.dailyCeiling();
        if (ceiling > highestCeilingOn[today()]) highestCeilingOn[today()] = ceiling;
    }

    function _noteMoved(uint256 amount) internal {
        movedOn[today()] += amount;
    }

    /// @dev What a settler can take from a user now.
    function _spendable(address user) internal view returns (uint256) {
        uint256 left = escrow.depositOf(user);
        (uint256 maximum, uint256 debited) = escrow.capOf(user);
        return left < maximum - debited ? left : maximum - debited;
    }

    function _min(uint256 a, uint256 b) internal pure returns (uint256) {
        return a < b ? a : b;
    }
}
