// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {IInferenceEscrow} from "../src/interfaces/IInferenceEscrow.sol";
import {EscrowTest} from "./utils/EscrowTest.sol";

/// What calls cost, in snapshots/GasTest.json: with the transaction's base and calldata, storage
/// cold, and each account known unless the name says otherwise. A test fails where a figure has
/// changed; `npm run snapshot` writes them anew.
///
/// forge-config: default.isolate = true
contract GasTest is EscrowTest {
    uint256 private constant USERS = 500;
    uint256 private constant PROVIDERS = 100;
    uint256 private constant DIGITS = 1.23456789e18;

    function setUp() public override {
        super.setUp();
        for (uint256 i = 0; i < USERS; ++i) {
            vm.prank(alice);
            escrow.depositFor(_user(i), DIGITS);
            bytes32 digest = escrow.capDigest(_user(i), DIGITS, START, 0);
            escrow.raiseCap(_user(i), DIGITS, START, _sign(1 + i, digest));
        }
        _prepay(alice, 100);
        _prepay(bob, 100);
        _settle("first", _debits(alice, 10), _credits(gpu1, 9), 1);
    }

    function test_Settle() external {
        _settle(BATCH, _debits(alice, 10), _credits(gpu1, 9), 1);
        vm.snapshotGasLastCall("settle, 1 user, 1 provider");
        _settleMany("providers new", DIGITS / 7);
        vm.snapshotGasLastCall("settle, 500 users, 100 providers, new ones");
        _settleMany("all known", DIGITS / 13);
        vm.snapshotGasLastCall("settle, 500 users, 100 providers");
    }

    function test_Prepaid() external {
        _deposit(alice, 10);
        vm.snapshotGasLastCall("deposit");
        vm.prank(alice);
        escrow.requestWithdrawal(10);
        vm.snapshotGasLastCall("requestWithdrawal");
        vm.warp(START + WITHDRAWAL_DELAY);
        vm.prank(alice);
        escrow.withdraw(alice);
        vm.snapshotGasLastCall("withdraw");
    }

    function test_Caps() external {
        bytes memory signature = _signCap(alice, 500, START);
        escrow.raiseCap(alice, 500, START, signature);
        vm.snapshotGasLastCall("raiseCap");
        vm.prank(alice);
        escrow.requestCapLowering(10);
        vm.snapshotGasLastCall("requestCapLowering");
        vm.warp(START + WITHDRAWAL_DELAY);
        vm.prank(alice);
        escrow.lowerCap();
        vm.snapshotGasLastCall("lowerCap");
    }

    function test_Claim() external {
        vm.prank(gpu1);
        escrow.claim();
        vm.snapshotGasLastCall("claim, wallet without FAR");
    }

    function test_PerRequest() external {
        vm.prank(alice);
        escrow.createEscrow("1", 10);
        vm.snapshotGasLastCall("createEscrow");
        _release(alice, "1", gpu1, 8);
        vm.snapshotGasLastCall("releaseMultiple, 1 provider, refund");
        _createEscrow(alice, "2", 10);
        vm.prank(settler);
        escrow.cancel(alice, "2");
        vm.snapshotGasLastCall("cancel");
    }

    function _settleMany(bytes32 batchId, uint256 each) private {
        IInferenceEscrow.Line[] memory debits = new IInferenceEscrow.Line[](USERS);
        IInferenceEscrow.Line[] memory credits = new IInferenceEscrow.Line[](PROVIDERS);
        for (uint256 i = 0; i < USERS; ++i) {
            debits[i] = _line(_user(i), each);
        }
        for (uint256 i = 0; i < PROVIDERS; ++i) {
            address provider = vm.addr(0xA000 + i);
            credits[i] = _line(provider, each * 4);
        }
        _settle(batchId, debits, credits, each * 100);
    }

    function _user(uint256 i) private pure returns (address) {
        return vm.addr(1 + i);
    }
}
