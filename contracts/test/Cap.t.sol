// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {IInferenceEscrow} from "../src/interfaces/IInferenceEscrow.sol";
import {ContractWallet} from "./mocks/ContractWallet.sol";
import {EscrowTest} from "./utils/EscrowTest.sol";

contract CapTest is EscrowTest {
    bytes32 private constant DOMAIN = keccak256(
        "EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"
    );
    bytes32 private constant CAP =
        keccak256("Cap(address user,uint256 maximum,uint256 deadline,uint256 nonce)");

    // ------------------------------------------------------------- raiseCap

    function test_Raise() external {
        _deposit(alice, 50);
        bytes memory signature = _signCap(alice, 100, START);
        _expectEmit();
        emit IInferenceEscrow.CapRaised(alice, 100);
        vm.prank(stranger);
        escrow.raiseCap(alice, 100, START, signature);
        _assertCap(alice, 100, 0);
        vm.assertEq(escrow.nonces(alice), 1);

        _settle(BATCH, _debits(alice, 40), _credits(gpu1, 40), 0);
        _assertCap(alice, 100, 40);
        _raiseCap(alice, 101);
        _assertCap(alice, 101, 40);
        vm.assertEq(escrow.depositOf(alice), 10);
    }

    function test_RaiseToTheMost() external {
        _raiseCap(alice, type(uint96).max);
        _assertCap(alice, type(uint96).max, 0);
        vm.assertEq(escrow.depositOf(alice), 0);
    }

    /// @dev Built here from the standard, not from the contract's own words.
    function test_DigestIsEip712() external view {
        bytes32 domain = keccak256(
            abi.encode(
                DOMAIN, keccak256("InferenceEscrow"), keccak256("1"), block.chainid, address(escrow)
            )
        );
        bytes32 cap = keccak256(abi.encode(CAP, alice, 100, START, 7));
        vm.assertEq(
            escrow.capDigest(alice, 100, START, 7),
            keccak256(abi.encodePacked("\x19\x01", domain, cap))
        );
    }

    function test_RevertWhen_Expired() external {
        bytes memory signature = _signCap(alice, 100, START);
        vm.warp(START + 1);
        vm.expectRevert(
            abi.encodeWithSelector(IInferenceEscrow.InferenceEscrow_CapExpired.selector, START)
        );
        escrow.raiseCap(alice, 100, START, signature);
    }

    function test_RevertWhen_AnotherSigned() external {
        bytes memory signature = _signCap(bob, 100, START);
        _expectSignatureInvalid(alice);
        escrow.raiseCap(alice, 100, START, signature);
    }

    function test_RevertWhen_SomethingElseWasSigned() external {
        bytes memory signature = _signCap(alice, 100, START);
        _expectSignatureInvalid(alice);
        escrow.raiseCap(alice, 101, START, signature);
        _expectSignatureInvalid(alice);
        escrow.raiseCap(alice, 100, START + 1, signature);
        _expectSignatureInvalid(bob);
        escrow.raiseCap(bob, 100, START, signature);
    }

    function test_RevertWhen_SignatureWasUsed() external {
        bytes memory signature = _signCap(alice, 100, START);
        escrow.raiseCap(alice, 100, START, signature);
        _expectSignatureInvalid(alice);
        escrow.raiseCap(alice, 100, START, signature);
    }

    function test_RevertWhen_NotAboveTheCap() external {
        _raiseCap(alice, 100);
        bytes memory signature = _signCap(alice, 100, START);
        _expectNotRaised(100, 100);
        escrow.raiseCap(alice, 100, START, signature);
        signature = _signCap(alice, 99, START);
        _expectNotRaised(100, 99);
        escrow.raiseCap(alice, 99, START, signature);
        signature = _signCap(bob, 0, START);
        _expectNotRaised(0, 0);
        escrow.raiseCap(bob, 0, START, signature);
    }

    function test_RevertWhen_TooLarge() external {
        uint256 maximum = uint256(type(uint96).max) + 1;
        bytes memory signature = _signCap(alice, maximum, START);
        _expectTooLarge(maximum);
        escrow.raiseCap(alice, maximum, START, signature);
    }

    function test_RaisingEndsALowering() external {
        _raiseCap(alice, 100);
        _requestLowering(10);
        _raiseCap(alice, 200);
        vm.warp(START + WITHDRAWAL_DELAY);
        _expectNothingRequested(alice);
        _lower();
        _assertCap(alice, 200, 0);
    }

    function test_ContractWallet() external {
        ContractWallet wallet = new ContractWallet();
        wallet.approveDigest(escrow.capDigest(address(wallet), 100, START, 0));
        escrow.raiseCap(address(wallet), 100, START, "");
        _assertCap(address(wallet), 100, 0);
    }

    function test_RevertWhen_ContractWalletRefuses() external {
        ContractWallet wallet = new ContractWallet();
        _expectSignatureInvalid(address(wallet));
        escrow.raiseCap(address(wallet), 100, START, "");
    }

    // --------------------------------------------------- requestCapLowering

    function test_RequestLowering() external {
        _prepay(alice, 100);
        _expectEmit();
        emit IInferenceEscrow.CapLoweringRequested(alice, 0, READY_AT);
        _requestLowering(0);
        vm.assertEq(escrow.capLoweringOf(alice).amount, 0);
        vm.assertEq(escrow.capLoweringOf(alice).readyAt, START + WITHDRAWAL_DELAY);

        _settle(BATCH, _debits(alice, 100), _credits(gpu1, 100), 0);
        _assertCap(alice, 100, 100);
    }

    function test_RequestLoweringReplacesTheOneBefore() external {
        _raiseCap(alice, 100);
        _requestLowering(10);
        vm.warp(START + 1);
        _requestLowering(20);
        vm.assertEq(escrow.capLoweringOf(alice).amount, 20);
        vm.assertEq(escrow.capLoweringOf(alice).readyAt, START + 1 + WITHDRAWAL_DELAY);
    }

    function test_RequestLoweringVoidsWhatWasSigned() external {
        _raiseCap(alice, 100);
        bytes memory signature = _signCap(alice, 200, START);
        _requestLowering(99);
        vm.assertEq(escrow.nonces(alice), 2);
        _expectSignatureInvalid(alice);
        escrow.raiseCap(alice, 200, START, signature);
    }

    function test_RevertWhen_NotBelowTheCap() external {
        _raiseCap(alice, 100);
        _expectNotLowered(100, 100);
        _requestLowering(100);
        _expectNotLowered(100, type(uint256).max);
        _requestLowering(type(uint256).max);
    }

    // ---------------------------------------------------- cancelCapLowering

    function test_CancelLowering() external {
        _raiseCap(alice, 100);
        _requestLowering(0);
        _expectEmit();
        emit IInferenceEscrow.CapLoweringCancelled(alice);
        vm.prank(alice);
        escrow.cancelCapLowering();

        vm.assertEq(escrow.capLoweringOf(alice).readyAt, 0);
        vm.warp(START + WITHDRAWAL_DELAY);
        _expectNothingRequested(alice);
        _lower();
    }

    function test_RevertWhen_NoLoweringToCancel() external {
        _expectNothingRequested(alice);
        vm.prank(alice);
        escrow.cancelCapLowering();
    }

    // ------------------------------------------------------------- lowerCap

    function testFuzz_Lower(uint256 asked, uint256 debit) external {
        _prepay(alice, 100);
        asked = _bound(asked, 0, 99);
        debit = _bound(debit, 0, 100);
        _requestLowering(asked);
        _settle(BATCH, _debits(alice, debit), _credits(gpu1, debit), 0);
        vm.warp(START + WITHDRAWAL_DELAY);

        uint256 maximum = debit > asked ? debit : asked;
        _expectEmit();
        emit IInferenceEscrow.CapLowered(alice, maximum);
        _lower();
        _assertCap(alice, maximum, debit);
        vm.assertEq(escrow.depositOf(alice), 100 - debit);
        vm.assertEq(escrow.capLoweringOf(alice).readyAt, 0);
    }

    function test_Lower() external {
        _prepay(alice, 100);
        _requestLowering(40);
        _settle(BATCH, _debits(alice, 10), _credits(gpu1, 10), 0);
        vm.warp(START + WITHDRAWAL_DELAY);
        _expectEmit();
        emit IInferenceEscrow.CapLowered(alice, 40);
        _lower();
        _assertCap(alice, 40, 10);
        vm.assertEq(escrow.depositOf(alice), 90);
        _expectNothingRequested(alice);
        _lower();
    }

    function test_LowersToWhatWasDebited() external {
        _prepay(alice, 100);
        _requestLowering(0);
        _settle(BATCH, _debits(alice, 10), _credits(gpu1, 10), 0);
        vm.warp(START + WITHDRAWAL_DELAY);
        _lower();
        _assertCap(alice, 10, 10);
    }

    function test_LoweredCapHolds() external {
        _prepay(alice, 100);
        _requestLowering(40);
        vm.warp(START + WITHDRAWAL_DELAY);
        _lower();
        vm.expectRevert(
            abi.encodeWithSelector(
                IInferenceEscrow.InferenceEscrow_CapExceeded.selector, alice, 40, 41
            )
        );
        _settle(BATCH, _debits(alice, 41), _credits(gpu1, 41), 0);
        _settle(BATCH, _debits(alice, 40), _credits(gpu1, 40), 0);
    }

    function test_RevertWhen_NoLoweringIsAsked() external {
        _expectNothingRequested(alice);
        _lower();
    }

    function test_RevertWhen_LoweringTooEarly() external {
        _raiseCap(alice, 100);
        _requestLowering(10);
        vm.warp(START + WITHDRAWAL_DELAY - 1);
        _expectTooEarly(START + WITHDRAWAL_DELAY);
        _lower();
    }

    function test_LowersAtOnceWhileDormant() external {
        _raiseCap(alice, 100);
        vm.warp(START + DORMANCY);
        _requestLowering(10);
        _lower();
        _assertCap(alice, 10, 0);
    }

    // -------------------------------------------------------------- helpers

    function _requestLowering(uint256 maximum) private {
        vm.prank(alice);
        escrow.requestCapLowering(maximum);
    }

    function _lower() private {
        vm.prank(alice);
        escrow.lowerCap();
    }

    function _expectSignatureInvalid(address user) private {
        vm.expectRevert(
            abi.encodeWithSelector(
                IInferenceEscrow.InferenceEscrow_CapSignatureInvalid.selector, user
            )
        );
    }

    function _expectNotRaised(uint256 current, uint256 maximum) private {
        vm.expectRevert(
            abi.encodeWithSelector(
                IInferenceEscrow.InferenceEscrow_CapNotRaised.selector, current, maximum
            )
        );
    }

    function _expectNotLowered(uint256 current, uint256 maximum) private {
        vm.expectRevert(
            abi.encodeWithSelector(
                IInferenceEscrow.InferenceEscrow_CapNotLowered.selector, current, maximum
            )
        );
    }
}
