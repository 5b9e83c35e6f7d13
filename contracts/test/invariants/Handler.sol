// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {FarToken} from "../../src/FarToken.sol";
import {InferenceEscrow} from "../../src/InferenceEscrow.sol";
import {IInferenceEscrow} from "../../src/interfaces/IInferenceEscrow.sol";
import {Books} from "./Books.sol";
import {UserHandler} from "./UserHandler.sol";

/// @notice What settler, admin and pauser do, in any order and with any figures that can succeed;
/// and what a settler may try.
contract Handler is UserHandler {
    constructor(InferenceEscrow escrow, FarToken far, address[3] memory roles)
        Books(escrow, far, roles)
    {}

    /// @dev Two debits and two credits of what the users have, the fee whatever is left over.
    function settle(uint256[2] memory users, uint256[2] memory providers, uint256[4] memory amounts)
        external
        watched
        whenRunning
    {
        IInferenceEscrow.Line[] memory debits = new IInferenceEscrow.Line[](2);
        IInferenceEscrow.Line[] memory credits = new IInferenceEscrow.Line[](2);
        uint256 allowed = escrow.leftToday();
        uint256 sum = 0;
        for (uint256 i = 0; i < 2; ++i) {
            address user = _actor(users[i]);
            uint256 left = _spendable(user);
            if (i == 1 && user == _actor(users[0])) left -= sum;
            uint256 amount = _bound(amounts[i], 0, _min(left, allowed - sum));
            debits[i] = _line(user, amount);
            debitedFrom[user] += amount;
            sum += amount;
        }
        uint256 fee = sum;
        for (uint256 i = 0; i < 2; ++i) {
            uint256 amount = _bound(amounts[2 + i], 0, fee);
            credits[i] = _line(_actor(providers[i]), amount);
            earnedBy[_actor(providers[i])] += amount;
            fee -= amount;
        }
        earnedBy[escrow.feeRecipient()] += fee;
        bytes32 batchId = keccak256(abi.encode("batch", batches.length));
        batches.push(batchId);
        rootOf[batchId] = keccak256(abi.encode("root", batchId));
        vm.prank(settler);
        escrow.settle(batchId, debits, credits, fee, rootOf[batchId]);
        ++timesSettled[batchId];
        lastSettledAt = block.timestamp;
        _noteMoved(sum);
    }

    /// @dev The settler sends a batch again that he sent before, with money for it to take.
    function settleAgain(uint256 which, uint256 user, uint256 provider) external watched {
        if (batches.length == 0) return;
        bytes32 batchId = batches[which % batches.length];
        uint256 amount = _min(_spendable(_actor(user)), escrow.leftToday());
        vm.prank(settler);
        try escrow.settle(
            batchId, _debits(_actor(user), amount), _credits(_actor(provider), amount), 0, "root"
        ) {
            ++timesSettled[batchId];
        } catch {}
    }

    /// @dev The settler takes more than a user has, more than one signed, more than a day allows, or
    /// gives more than he takes.
    function overcharge(uint256 user, uint256 more, uint256 how) external watched {
        address from = _actor(user);
        uint256 limit = how % 2 == 0 ? _spendable(from) : escrow.leftToday();
        uint256 debit = limit + _bound(more, 1, 1e27);
        uint256 credit = debit;
        if (how % 3 == 0) (debit, credit) = (_min(limit, _spendable(from)), debit);
        vm.prank(settler);
        try escrow.settle(
            keccak256(abi.encode(more)), _debits(from, debit), _credits(from, credit), 0, "root"
        ) {
            tookTooMuch = true;
        } catch {}
    }

    /// @dev While paused, settler and users try what a pause stops.
    function tryWhilePaused(uint256 user) external watched {
        if (!escrow.paused()) return;
        vm.prank(settler);
        try escrow.settle(keccak256("paused"), _none(), _none(), 0, "root") {
            movedWhilePaused = true;
        } catch {}
        vm.prank(settler);
        try escrow.releaseBatch(new IInferenceEscrow.Release[](0)) {
            movedWhilePaused = true;
        } catch {}
        if (far.balanceOf(_actor(user)) == 0) return;
        vm.prank(_actor(user));
        try escrow.deposit(1) {
            movedWhilePaused = true;
        } catch {}
    }

    function release(uint256 which, uint256[2] memory providers, uint256[2] memory amounts)
        external
        watched
        whenRunning
    {
        (bool found, Request memory request) = _openRequest(which);
        if (!found) return;
        IInferenceEscrow.Release memory item = _item(request, providers, amounts);
        vm.prank(settler);
        escrow.releaseMultiple(item.user, item.requestId, item.providers, item.amounts);
        _close(request, item);
    }

    /// @dev A good item between a copy of itself and one that asks for too much.
    function releaseBatch(uint256 which, uint256[2] memory providers, uint256[2] memory amounts)
        external
        watched
        whenRunning
    {
        (bool found, Request memory request) = _openRequest(which);
        if (!found) return;
        IInferenceEscrow.Release[] memory items = new IInferenceEscrow.Release[](3);
        items[0] = _item(request, providers, amounts);
        items[0].amounts[0] = type(uint256).max;
        items[1] = _item(request, providers, amounts);
        items[2] = items[1];
        vm.prank(settler);
        escrow.releaseBatch(items);
        _close(request, items[1]);
    }

    function cancel(uint256 which, bool bySettler) external watched {
        (bool found, Request memory request) = _openRequest(which);
        if (!found) return;
        if (!bySettler) {
            uint256 deadline = escrow.escrowOf(request.user, request.requestId).deadline;
            if (block.timestamp < deadline) vm.warp(deadline);
        }
        vm.prank(bySettler ? settler : request.user);
        escrow.cancel(request.user, request.requestId);
        IInferenceEscrow.Release memory nothing;
        _close(request, nothing);
    }

    /// @dev The settler releases or cancels an escrow that is closed.
    function closeAgain(uint256 which, bool byCancel) external watched {
        if (requests.length == 0) return;
        Request memory request = requests[which % requests.length];
        if (_stateOf(request) == IInferenceEscrow.EscrowState.Open) return;
        vm.prank(settler);
        if (byCancel) {
            try escrow.cancel(request.user, request.requestId) {
                ++timesClosed[_idOf(request)];
            } catch {}
        } else {
            try escrow.releaseMultiple(
                request.user, request.requestId, new address[](0), new uint256[](0)
            ) {
                ++timesClosed[_idOf(request)];
            } catch {}
        }
    }

    function setFeeRecipient(uint256 recipient) external watched {
        vm.prank(admin);
        escrow.setFeeRecipient(_actor(recipient));
    }

    function setDailyCeiling(uint256 ceiling) external watched {
        vm.prank(admin);
        escrow.setDailyCeiling(_bound(ceiling, 0, 2000e18));
        _noteCeiling();
    }

    function pause() external watched {
        if (escrow.paused()) return;
        vm.prank(pauser);
        escrow.pause();
    }

    function unpause() external watched {
        if (!escrow.paused()) return;
        vm.prank(pauser);
        escrow.unpause();
    }

    function wait(uint256 time) external watched {
        vm.warp(block.timestamp + _bound(time, 1, 3 days));
        _noteCeiling();
    }

    // -------------------------------------------------------------- helpers

    function _idOf(Request memory request) private view returns (bytes32) {
        return escrow.escrowIdOf(request.user, request.requestId);
    }

    function _stateOf(Request memory request) private view returns (IInferenceEscrow.EscrowState) {
        return escrow.escrowOf(request.user, request.requestId).state;
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
        uint256 left = escrow.escrowOf(request.user, request.requestId).amount;
        left = _min(left, escrow.leftToday());
        for (uint256 i = 0; i < 2; ++i) {
            item.providers[i] = _actor(providers[i]);
            item.amounts[i] = _bound(amounts[i], 0, left);
            left -= item.amounts[i];
        }
    }

    function _close(Request memory request, IInferenceEscrow.Release memory paid) private {
        ++timesClosed[_idOf(request)];
        uint256 rest = escrow.escrowOf(request.user, request.requestId).amount;
        for (uint256 i = 0; i < paid.amounts.length; ++i) {
            earnedBy[paid.providers[i]] += paid.amounts[i];
            rest -= paid.amounts[i];
            _noteMoved(paid.amounts[i]);
        }
        refundedTo[request.user] += rest;
    }
}
