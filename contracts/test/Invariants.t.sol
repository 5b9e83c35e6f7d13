// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {IInferenceEscrow} from "../src/interfaces/IInferenceEscrow.sol";
import {EscrowTest} from "./utils/EscrowTest.sol";
import {Handler} from "./utils/Handler.sol";

/// What holds after any sequence of calls:
///
/// 1. Solvent: the contract holds exactly what its three totals say, and what it was sent unasked.
/// 2. Each total is the sum of its parts, so that nobody's balance is missing or counted twice.
/// 3. Conserved: what was paid in is what is still held and what was claimed; what became a credit
///    was earned or refunded; no token comes to be or vanishes.
/// 4. A batch settles once.
/// 5. An escrow closes once, and is open until then.
/// 6. Lifetime earnings never decrease, and are no one's but those who were credited.
contract InvariantsTest is EscrowTest {
    Handler private handler;

    function setUp() public override {
        super.setUp();
        address[] memory actors = new address[](5);
        (actors[0], actors[1], actors[2]) = (alice, bob, gpu1);
        (actors[3], actors[4]) = (gpu2, treasury);
        for (uint256 i = 2; i < actors.length; ++i) {
            vm.prank(actors[i]);
            far.approve(address(escrow), type(uint256).max);
        }
        handler = new Handler(escrow, far, operator, actors);
    }

    /// @dev forge asks for this: call the handler, and nothing else.
    function targetContracts() external view returns (address[] memory) {
        return _array(address(handler));
    }

    function invariant_Solvent() external view {
        vm.assertEq(
            far.balanceOf(address(escrow)),
            escrow.totalDeposits() + escrow.totalCredits() + escrow.totalEscrowed()
                + handler.donated()
        );
    }

    function invariant_TotalsAreSums() external view {
        uint256 deposits = 0;
        uint256 credits = 0;
        for (uint256 i = 0; i < handler.actorCount(); ++i) {
            deposits += escrow.depositOf(handler.actors(i));
            credits += escrow.creditOf(handler.actors(i));
        }
        uint256 open = 0;
        for (uint256 i = 0; i < handler.requestCount(); ++i) {
            (address user, bytes32 requestId) = handler.requests(i);
            IInferenceEscrow.Escrow memory e = escrow.escrowOf(user, requestId);
            if (e.state == IInferenceEscrow.EscrowState.Open) open += e.amount;
        }
        vm.assertEq(escrow.totalDeposits(), deposits);
        vm.assertEq(escrow.totalCredits(), credits);
        vm.assertEq(escrow.totalEscrowed(), open);
    }

    function invariant_Conserved() external view {
        vm.assertEq(
            handler.deposited() + handler.escrowed(),
            escrow.totalDeposits() + escrow.totalCredits() + escrow.totalEscrowed()
                + handler.claimed()
        );
        vm.assertEq(
            handler.earned() + handler.refunded(), escrow.totalCredits() + handler.claimed()
        );
    }

    function invariant_BatchSettlesOnce() external view {
        for (uint256 i = 0; i < handler.batchCount(); ++i) {
            bytes32 batchId = handler.batches(i);
            vm.assertEq(handler.timesSettled(batchId), 1);
            vm.assertTrue(escrow.batchSettled(batchId));
        }
    }

    function invariant_EscrowClosesOnce() external view {
        for (uint256 i = 0; i < handler.requestCount(); ++i) {
            (address user, bytes32 requestId) = handler.requests(i);
            bool open = _stateOf(user, requestId) == IInferenceEscrow.EscrowState.Open;
            vm.assertEq(handler.timesClosed(escrow.escrowIdOf(user, requestId)), open ? 0 : 1);
        }
    }

    function invariant_EarningsNeverDecrease() external view {
        vm.assertEq(handler.earnedDecreased(), false);
        uint256 earned = 0;
        for (uint256 i = 0; i < handler.actorCount(); ++i) {
            earned += escrow.earnedOf(handler.actors(i));
        }
        vm.assertEq(earned, handler.earned());
    }
}
