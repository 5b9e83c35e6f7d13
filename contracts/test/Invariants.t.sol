// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {IInferenceEscrow} from "../src/interfaces/IInferenceEscrow.sol";
import {Handler} from "./invariants/Handler.sol";
import {EscrowTest} from "./utils/EscrowTest.sol";

/// What holds after any sequence of calls:
///
/// The whole
///  1. Solvent: the contract holds exactly what its three totals say, and what it was sent unasked.
///  2. Deposits: their total is the sum over the users.
///  3. Credits: their total is the sum over the accounts.
///  4. Escrows: their total is the sum of those that are open.
///  5. Limited: all that is held together fits in 96 bits, so no counter can run over.
/// Each account
///  6. A deposit is what was paid in, less what was debited and what was withdrawn.
///  7. A credit is what was earned and refunded, less what was claimed: nobody claims twice.
///  8. Lifetime earnings are what the account was credited for work and fees, and never decrease.
///  9. What the contract says was debited is what was, and is never above the cap.
/// 10. Nobody was debited more than the most that he ever signed.
/// 11. Nobody took more than his own, and no settler more than was allowed.
/// 12. Signed caps are used in order: nonces never decrease.
/// Time
/// 13. Nothing leaves before its delay, unless the contract is dormant.
/// 14. Whoever waited gets out: withdrawing, lowering a cap and claiming never fail, paused or not.
/// 15. Debits and releases of one day are never above that day's highest ceiling.
/// 16. Nothing comes in and nothing is settled while paused.
/// 17. The contract is dormant when no batch was settled for so long, and only then.
/// Once
/// 18. A batch settles once, and keeps its root.
/// 19. An escrow closes once, and is open until then.
contract InvariantsTest is EscrowTest {
    Handler private handler;

    function setUp() public override {
        super.setUp();
        handler = new Handler(escrow, far, [admin, settler, pauser]);
        for (uint256 i = 0; i < handler.actorCount(); ++i) {
            vm.prank(handler.actors(i));
            far.approve(address(escrow), type(uint256).max);
        }
    }

    /// @dev forge asks for this: call the handler, and nothing else.
    function targetContracts() external view returns (address[] memory) {
        return _array(address(handler));
    }

    // forge plays all the runs anew for each of these, so each of them looks at several invariants.

    function invariant_TheWhole() external view {
        _solvent();
        _depositsAddUp();
        _creditsAddUp();
        _escrowsAddUp();
        _limited();
    }

    function invariant_EachAccount() external view {
        _depositsAreWhatIsLeft();
        _nobodyClaimsTwice();
        _earningsAreTheWorkersAndNeverDecrease();
        _debitsStayWithinTheCap();
        _nobodyPaysMoreThanHeSigned();
        _nobodyTakesTooMuch();
        _noncesNeverDecrease();
    }

    function invariant_Time() external view {
        _nothingLeavesTooEarly();
        _whoeverWaitedGetsOut();
        _daysStayBelowTheirCeiling();
        _pausedIsPaused();
        _dormantAfterSilence();
    }

    function invariant_Once() external view {
        _batchSettlesOnce();
        _escrowClosesOnce();
    }

    // ------------------------------------------------------------ the whole

    function _solvent() private view {
        vm.assertEq(far.balanceOf(address(escrow)), _held() + handler.donated());
    }

    function _depositsAddUp() private view {
        uint256 sum = 0;
        for (uint256 i = 0; i < handler.actorCount(); ++i) {
            sum += escrow.depositOf(handler.actors(i));
        }
        vm.assertEq(escrow.totalDeposits(), sum);
    }

    function _creditsAddUp() private view {
        uint256 sum = 0;
        for (uint256 i = 0; i < handler.actorCount(); ++i) {
            sum += escrow.creditOf(handler.actors(i));
        }
        vm.assertEq(escrow.totalCredits(), sum);
    }

    function _escrowsAddUp() private view {
        uint256 sum = 0;
        for (uint256 i = 0; i < handler.requestCount(); ++i) {
            (address user, bytes32 requestId) = handler.requests(i);
            IInferenceEscrow.Escrow memory e = escrow.escrowOf(user, requestId);
            if (e.state == IInferenceEscrow.EscrowState.Open) sum += e.amount;
        }
        vm.assertEq(escrow.totalEscrowed(), sum);
    }

    function _limited() private view {
        vm.assertLe(_held(), type(uint96).max);
    }

    // --------------------------------------------------------- each account

    function _depositsAreWhatIsLeft() private view {
        for (uint256 i = 0; i < handler.actorCount(); ++i) {
            address user = handler.actors(i);
            vm.assertEq(
                escrow.depositOf(user) + handler.debitedFrom(user) + handler.withdrawnBy(user),
                handler.depositedBy(user)
            );
        }
    }

    function _nobodyClaimsTwice() private view {
        for (uint256 i = 0; i < handler.actorCount(); ++i) {
            address account = handler.actors(i);
            vm.assertEq(
                escrow.creditOf(account) + handler.claimedBy(account),
                handler.earnedBy(account) + handler.refundedTo(account)
            );
        }
    }

    function _earningsAreTheWorkersAndNeverDecrease() private view {
        vm.assertFalse(handler.earnedDecreased());
        for (uint256 i = 0; i < handler.actorCount(); ++i) {
            address account = handler.actors(i);
            vm.assertEq(escrow.earnedOf(account), handler.earnedBy(account));
        }
    }

    function _debitsStayWithinTheCap() private view {
        for (uint256 i = 0; i < handler.actorCount(); ++i) {
            address user = handler.actors(i);
            (uint256 maximum, uint256 debited) = escrow.capOf(user);
            vm.assertEq(debited, handler.debitedFrom(user));
            vm.assertLe(debited, maximum);
        }
    }

    function _nobodyPaysMoreThanHeSigned() private view {
        for (uint256 i = 0; i < handler.actorCount(); ++i) {
            address user = handler.actors(i);
            (uint256 maximum,) = escrow.capOf(user);
            vm.assertLe(maximum, handler.highestCap(user));
            vm.assertLe(handler.debitedFrom(user), handler.highestCap(user));
        }
    }

    function _nobodyTakesTooMuch() private view {
        vm.assertFalse(handler.tookTooMuch());
    }

    function _noncesNeverDecrease() private view {
        vm.assertFalse(handler.nonceDecreased());
    }

    // ----------------------------------------------------------------- time

    function _nothingLeavesTooEarly() private view {
        vm.assertFalse(handler.leftTooEarly());
    }

    function _whoeverWaitedGetsOut() private view {
        vm.assertFalse(handler.heldBack());
    }

    function _daysStayBelowTheirCeiling() private view {
        uint256 day = handler.today();
        vm.assertLe(handler.movedOn(day), handler.highestCeilingOn(day));
        vm.assertLe(escrow.leftToday(), escrow.dailyCeiling());
    }

    function _pausedIsPaused() private view {
        vm.assertFalse(handler.movedWhilePaused());
    }

    function _dormantAfterSilence() private view {
        vm.assertEq(escrow.lastSettledAt(), handler.lastSettledAt());
        vm.assertEq(escrow.dormant(), block.timestamp >= handler.lastSettledAt() + DORMANCY);
    }

    // ----------------------------------------------------------------- once

    function _batchSettlesOnce() private view {
        for (uint256 i = 0; i < handler.batchCount(); ++i) {
            bytes32 batchId = handler.batches(i);
            vm.assertEq(handler.timesSettled(batchId), 1);
            vm.assertEq(escrow.usageRootOf(batchId), handler.rootOf(batchId));
        }
    }

    function _escrowClosesOnce() private view {
        for (uint256 i = 0; i < handler.requestCount(); ++i) {
            (address user, bytes32 requestId) = handler.requests(i);
            bool open = _stateOf(user, requestId) == IInferenceEscrow.EscrowState.Open;
            vm.assertEq(handler.timesClosed(escrow.escrowIdOf(user, requestId)), open ? 0 : 1);
        }
    }

    function _held() private view returns (uint256) {
        return escrow.totalDeposits() + escrow.totalCredits() + escrow.totalEscrowed();
    }
}
