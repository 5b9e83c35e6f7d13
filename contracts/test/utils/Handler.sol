// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {FarToken} from "../../src/FarToken.sol";
import {InferenceEscrow} from "../../src/InferenceEscrow.sol";
import {IInferenceEscrow} from "../../src/interfaces/IInferenceEscrow.sol";
import {Test} from "./Test.sol";

/// @notice Does what users, providers and the operator may do, in any order and with any figures
/// that can succeed, and keeps its own books to hold the contract's against. Every actor plays
/// every part, so that one account can be user, provider and fee recipient at a time.
contract Handler is Test {
    struct Request {
        address user;
        bytes32 requestId;
    }

    address private immutable _operator;
    FarToken private immutable _far;
    InferenceEscrow private immutable _escrow;

    address[] public actors;
    bytes32[] public batches;
    Request[] public requests;

    /// @dev Tokens by the way they took. Only the first three enter the escrow, only the last leaves.
    uint256 public deposited;
    uint256 public escrowed;
    uint256 public donated;
    uint256 public claimed;

    /// @dev What providers and the fee recipient were due, and what users got back.
    uint256 public earned;
    uint256 public refunded;

    mapping(bytes32 batchId => uint256) public timesSettled;
    mapping(bytes32 escrowId => uint256) public timesClosed;
    mapping(address account => uint256) public earnedBefore;
    bool public earnedDecreased;

    constructor(InferenceEscrow escrow, FarToken far, address operator, address[] memory actors_) {
        _escrow = escrow;
        _far = far;
        _operator = operator;
        actors = actors_;
    }

    /// @dev After every action, whatever it was, nobody's lifetime earnings are lower than before.
    modifier watched() {
        _;
        for (uint256 i = 0; i < actors.length; ++i) {
            uint256 now_ = _escrow.earnedOf(actors[i]);
            if (now_ < earnedBefore[actors[i]]) earnedDecreased = true;
            earnedBefore[actors[i]] = now_;
        }
    }

    // -------------------------------------------------------------- prepaid

    function deposit(uint256 payer, uint256 user, uint256 amount) external watched {
        uint256 funds = _far.balanceOf(_actor(payer));
        if (funds == 0) return;
        amount = _bound(amount, 1, funds);
        vm.prank(_actor(payer));
        _escrow.depositFor(_actor(user), amount);
        deposited += amount;
    }

    /// @dev Two debits and two credits of what the users have, the fee whatever is left over.
    function settle(uint256[2] memory users, uint256[2] memory providers, uint256[4] memory amounts)
        external
        watched
    {
        IInferenceEscrow.Debit[] memory debits = new IInferenceEscrow.Debit[](2);
        IInferenceEscrow.Credit[] memory credits = new IInferenceEscrow.Credit[](2);
        uint256 sum = 0;
        for (uint256 i = 0; i < 2; ++i) {
            address user = _actor(users[i]);
            uint256 left = _escrow.depositOf(user);
            if (i == 1 && user == debits[0].user) left -= debits[0].amount;
            debits[i] = IInferenceEscrow.Debit(user, _bound(amounts[i], 0, left));
            sum += debits[i].amount;
        }
        uint256 fee = sum;
        for (uint256 i = 0; i < 2; ++i) {
            uint256 amount = _bound(amounts[2 + i], 0, fee);
            credits[i] = IInferenceEscrow.Credit(_actor(providers[i]), amount);
            fee -= amount;
        }
        bytes32 batchId = keccak256(abi.encode("batch", batches.length));
        batches.push(batchId);
        vm.prank(_operator);
        _escrow.settle(batchId, debits, credits, fee);
        ++timesSettled[batchId];
        earned += sum;
    }

    /// @dev The operator sends a batch again that he sent before, with money for it to take.
    function settleAgain(uint256 which, uint256 user, uint256 provider) external watched {
        if (batches.length == 0) return;
        bytes32 batchId = batches[which % batches.length];
        uint256 amount = _escrow.depositOf(_actor(user));
        IInferenceEscrow.Debit[] memory debits = new IInferenceEscrow.Debit[](1);
        IInferenceEscrow.Credit[] memory credits = new IInferenceEscrow.Credit[](1);
        debits[0] = IInferenceEscrow.Debit(_actor(user), amount);
        credits[0] = IInferenceEscrow.Credit(_actor(provider), amount);
        vm.prank(_operator);
        try _escrow.settle(batchId, debits, credits, 0) {
            ++timesSettled[batchId];
        } catch {}
    }

    function claim(uint256 account, uint256 to) external watched {
        uint256 credit = _escrow.creditOf(_actor(account));
        if (credit == 0) return;
        vm.prank(_actor(account));
        _escrow.claimTo(_actor(to));
        claimed += credit;
    }

    /// @dev Somebody sends tokens to the contract without a call.
    function donate(uint256 from, uint256 amount) external watched {
        amount = _bound(amount, 0, _far.balanceOf(_actor(from)) / 10);
        vm.prank(_actor(from));
        require(_far.transfer(address(_escrow), amount));
        donated += amount;
    }

    // ---------------------------------------------------------- per request

    function createEscrow(uint256 user, uint256 amount) external watched {
        uint256 funds = _far.balanceOf(_actor(user));
        if (funds == 0) return;
        amount = _bound(amount, 1, funds);
        // Two users share each request id.
        Request memory request = Request(_actor(user), bytes32(requests.length / 2));
        if (_stateOf(request) != IInferenceEscrow.EscrowState.None) return;
        requests.push(request);
        vm.prank(request.user);
        _escrow.createEscrow(request.requestId, amount);
        escrowed += amount;
    }

    function release(uint256 which, uint256[2] memory providers, uint256[2] memory amounts)
        external
        watched
    {
        (bool found, Request memory request) = _openRequest(which);
        if (!found) return;
        IInferenceEscrow.Release memory item = _item(request, providers, amounts);
        vm.prank(_operator);
        _escrow.releaseMultiple(item.user, item.requestId, item.providers, item.amounts);
        _close(request, item.amounts[0] + item.amounts[1]);
    }

    /// @dev A good item between a copy of itself and one that asks for too much.
    function releaseBatch(uint256 which, uint256[2] memory providers, uint256[2] memory amounts)
        external
        watched
    {
        (bool found, Request memory request) = _openRequest(which);
        if (!found) return;
        IInferenceEscrow.Release[] memory items = new IInferenceEscrow.Release[](3);
        items[0] = _item(request, providers, amounts);
        items[0].amounts[0] = type(uint256).max;
        items[1] = _item(request, providers, amounts);
        items[2] = items[1];
        vm.prank(_operator);
        _escrow.releaseBatch(items);
        _close(request, items[1].amounts[0] + items[1].amounts[1]);
    }

    function cancel(uint256 which, bool byOperator) external watched {
        (bool found, Request memory request) = _openRequest(which);
        if (!found) return;
        if (!byOperator) {
            uint256 deadline = _escrow.escrowOf(request.user, request.requestId).deadline;
            if (block.timestamp < deadline) vm.warp(deadline);
        }
        vm.prank(byOperator ? _operator : request.user);
        _escrow.cancel(request.user, request.requestId);
        _close(request, 0);
    }

    /// @dev The operator releases or cancels an escrow that may be closed.
    function closeAgain(uint256 which, bool byCancel) external watched {
        if (requests.length == 0) return;
        Request memory request = requests[which % requests.length];
        if (_stateOf(request) == IInferenceEscrow.EscrowState.Open) return;
        vm.prank(_operator);
        if (byCancel) {
            try _escrow.cancel(request.user, request.requestId) {
                ++timesClosed[_idOf(request)];
            } catch {}
        } else {
            try _escrow.releaseMultiple(
                request.user, request.requestId, new address[](0), new uint256[](0)
            ) {
                ++timesClosed[_idOf(request)];
            } catch {}
        }
    }

    function setFeeRecipient(uint256 recipient) external watched {
        vm.prank(_operator);
        _escrow.setFeeRecipient(_actor(recipient));
    }

    // ---------------------------------------------------------------- views

    function actorCount() external view returns (uint256) {
        return actors.length;
    }

    function batchCount() external view returns (uint256) {
        return batches.length;
    }

    function requestCount() external view returns (uint256) {
        return requests.length;
    }

    // -------------------------------------------------------------- helpers

    function _actor(uint256 seed) private view returns (address) {
        return actors[seed % actors.length];
    }

    function _idOf(Request memory request) private view returns (bytes32) {
        return _escrow.escrowIdOf(request.user, request.requestId);
    }

    function _stateOf(Request memory request) private view returns (IInferenceEscrow.EscrowState) {
        return _escrow.escrowOf(request.user, request.requestId).state;
    }

    /// @dev The first open request from `which` on, round the end.
    function _openRequest(uint256 which) private view returns (bool, Request memory request) {
        for (uint256 i = 0; i < requests.length; ++i) {
            request = requests[(which % requests.length + i) % requests.length];
            if (_stateOf(request) == IInferenceEscrow.EscrowState.Open) return (true, request);
        }
        return (false, request);
    }

    function _item(Request memory request, uint256[2] memory providers, uint256[2] memory amounts)
        private
        view
        returns (IInferenceEscrow.Release memory item)
    {
        item.user = request.user;
        item.requestId = request.requestId;
        item.providers = new address[](2);
        item.amounts = new uint256[](2);
        uint256 left = _escrow.escrowOf(request.user, request.requestId).amount;
        for (uint256 i = 0; i < 2; ++i) {
            item.providers[i] = _actor(providers[i]);
            item.amounts[i] = _bound(amounts[i], 0, left);
            left -= item.amounts[i];
        }
    }

    function _close(Request memory request, uint256 paid) private {
        ++timesClosed[_idOf(request)];
        earned += paid;
        refunded += _escrow.escrowOf(request.user, request.requestId).amount - paid;
    }
}
