// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {IInferenceEscrow} from "../../src/interfaces/IInferenceEscrow.sol";
import {Books} from "./Books.sol";

/// @notice What users do: deposit, withdraw, raise and lower caps, claim; and what they try.
abstract contract UserHandler is Books {
    function deposit(uint256 payer, uint256 user, uint256 amount) external watched whenRunning {
        uint256 funds = far.balanceOf(_actor(payer));
        if (funds == 0) return;
        amount = _bound(amount, 1, funds);
        vm.prank(_actor(payer));
        escrow.depositFor(_actor(user), amount);
        depositedBy[_actor(user)] += amount;
    }

    function requestWithdrawal(uint256 user, uint256 amount) external watched {
        uint256 left = escrow.depositOf(_actor(user));
        if (left == 0) return;
        vm.prank(_actor(user));
        escrow.requestWithdrawal(_bound(amount, 1, left));
    }

    function cancelWithdrawal(uint256 user) external watched {
        if (escrow.withdrawalOf(_actor(user)).readyAt == 0) return;
        vm.prank(_actor(user));
        escrow.cancelWithdrawal();
    }

    /// @dev Waits for the delay. It must work whatever the others did, as long as money is left.
    function withdraw(uint256 user, uint256 to) external watched {
        address from = _actor(user);
        IInferenceEscrow.Pending memory pending = escrow.withdrawalOf(from);
        uint256 amount = _min(pending.amount, escrow.depositOf(from));
        if (amount == 0) return;
        if (block.timestamp < pending.readyAt) vm.warp(pending.readyAt);
        vm.prank(from);
        try escrow.withdraw(_actor(to)) {
            withdrawnBy[from] += amount;
        } catch {
            heldBack = true;
        }
    }

    /// @dev Does not wait: it must fail before its time, unless the contract is dormant.
    function withdrawAtOnce(uint256 user) external watched {
        address from = _actor(user);
        IInferenceEscrow.Pending memory pending = escrow.withdrawalOf(from);
        uint256 amount = _min(pending.amount, escrow.depositOf(from));
        bool due = block.timestamp >= pending.readyAt
            || block.timestamp >= lastSettledAt + escrow.DORMANCY();
        vm.prank(from);
        try escrow.withdraw(from) {
            withdrawnBy[from] += amount;
            if (!due || amount == 0) leftTooEarly = true;
        } catch {
            if (due && amount != 0) heldBack = true;
        }
    }

    function raiseCap(uint256 user, uint256 amount, uint256 submitter) external watched {
        address signer = _actor(user);
        (uint256 current,) = escrow.capOf(signer);
        uint256 maximum = current + _bound(amount, 1, 100e18);
        bytes32 digest = escrow.capDigest(signer, maximum, block.timestamp, escrow.nonces(signer));
        bytes memory signature = _sign(_actorKey(user), digest);
        vm.prank(_actor(submitter));
        escrow.raiseCap(signer, maximum, block.timestamp, signature);
        if (maximum > highestCap[signer]) highestCap[signer] = maximum;
    }

    function requestCapLowering(uint256 user, uint256 maximum) external watched {
        (uint256 current,) = escrow.capOf(_actor(user));
        if (current == 0) return;
        vm.prank(_actor(user));
        escrow.requestCapLowering(_bound(maximum, 0, current - 1));
    }

    function cancelCapLowering(uint256 user) external watched {
        if (escrow.capLoweringOf(_actor(user)).readyAt == 0) return;
        vm.prank(_actor(user));
        escrow.cancelCapLowering();
    }

    function lowerCap(uint256 user) external watched {
        uint256 readyAt = escrow.capLoweringOf(_actor(user)).readyAt;
        if (readyAt == 0) return;
        if (block.timestamp < readyAt) vm.warp(readyAt);
        vm.prank(_actor(user));
        try escrow.lowerCap() {}
        catch {
            heldBack = true;
        }
    }

    /// @dev It must work whatever the others did.
    function claim(uint256 account, uint256 to) external watched {
        address from = _actor(account);
        uint256 credit = escrow.creditOf(from);
        if (credit == 0) return;
        vm.prank(from);
        try escrow.claimTo(_actor(to)) {
            claimedBy[from] += credit;
        } catch {
            heldBack = true;
        }
    }

    /// @dev The claim that follows a claim.
    function claimAgain(uint256 account) external watched {
        address from = _actor(account);
        if (escrow.creditOf(from) != 0) return;
        vm.prank(from);
        try escrow.claim() {
            tookTooMuch = true;
        } catch {}
    }

    /// @dev Somebody sends tokens to the contract without a call.
    function donate(uint256 from, uint256 amount) external watched {
        amount = _bound(amount, 0, far.balanceOf(_actor(from)) / 10);
        vm.prank(_actor(from));
        require(far.transfer(address(escrow), amount));
        donated += amount;
    }

    function createEscrow(uint256 user, uint256 amount) external watched whenRunning {
        uint256 funds = far.balanceOf(_actor(user));
        if (funds == 0) return;
        amount = _bound(amount, 1, funds);
        // Two users share each request id.
        Request memory request = Request(_actor(user), bytes32(requests.length / 2));
        if (escrow.escrowOf(request.user, request.requestId).deadline != 0) return;
        requests.push(request);
        vm.prank(request.user);
        escrow.createEscrow(request.requestId, amount);
        escrowedBy[request.user] += amount;
    }
}
