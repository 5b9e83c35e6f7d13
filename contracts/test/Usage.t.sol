// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {IInferenceEscrow} from "../src/interfaces/IInferenceEscrow.sol";
import {EscrowTest} from "./utils/EscrowTest.sol";

contract UsageTest is EscrowTest {
    bytes32[4] private leaves;

    function setUp() public override {
        super.setUp();
        for (uint256 i = 0; i < leaves.length; ++i) {
            leaves[i] = _leaf(_line(i));
        }
        bytes32 root = _pair(_pair(leaves[0], leaves[1]), _pair(leaves[2], leaves[3]));
        _settleWith("four", root);
        _settleWith("one", leaves[0]);
    }

    function test_EachLine() external view {
        for (uint256 i = 0; i < leaves.length; ++i) {
            vm.assertTrue(escrow.verifyUsage("four", _line(i), _proof(i)));
        }
    }

    function test_OneLine() external view {
        vm.assertTrue(escrow.verifyUsage("one", _line(0), new bytes32[](0)));
        vm.assertFalse(escrow.verifyUsage("one", _line(1), new bytes32[](0)));
    }

    function test_AnyFieldDiffers() external view {
        IInferenceEscrow.Usage memory line = _line(1);
        line.requestId = "another";
        vm.assertFalse(escrow.verifyUsage("four", line, _proof(1)));
        line = _line(1);
        line.user = stranger;
        vm.assertFalse(escrow.verifyUsage("four", line, _proof(1)));
        line = _line(1);
        line.provider = stranger;
        vm.assertFalse(escrow.verifyUsage("four", line, _proof(1)));
        line = _line(1);
        ++line.tokens;
        vm.assertFalse(escrow.verifyUsage("four", line, _proof(1)));
        line = _line(1);
        ++line.amount;
        vm.assertFalse(escrow.verifyUsage("four", line, _proof(1)));
    }

    function test_AnotherProof() external view {
        vm.assertFalse(escrow.verifyUsage("four", _line(0), _proof(2)));
        vm.assertFalse(escrow.verifyUsage("four", _line(0), new bytes32[](0)));
        bytes32[] memory long = new bytes32[](3);
        (long[0], long[1], long[2]) = (_proof(0)[0], _proof(0)[1], leaves[0]);
        vm.assertFalse(escrow.verifyUsage("four", _line(0), long));
    }

    function test_AnotherBatch() external view {
        vm.assertFalse(escrow.verifyUsage("one", _line(1), _proof(1)));
        vm.assertFalse(escrow.verifyUsage("never settled", _line(1), _proof(1)));
    }

    /// @dev An inner node is the hash of 64 bytes, a leaf the hash of a hash: no line hashes once
    /// to an inner node.
    function test_LeavesAreHashedTwice() external {
        bytes32 once = keccak256(abi.encode(_line(0)));
        _settleWith("hashed once", once);
        vm.assertFalse(escrow.verifyUsage("hashed once", _line(0), new bytes32[](0)));
    }

    function _settleWith(bytes32 batchId, bytes32 root) private {
        vm.prank(settler);
        escrow.settle(batchId, _none(), _none(), 0, root);
    }

    function _line(uint256 i) private view returns (IInferenceEscrow.Usage memory) {
        return IInferenceEscrow.Usage(bytes32(i), alice, i % 2 == 0 ? gpu1 : gpu2, 10 * i, 1e15 * i);
    }

    function _leaf(IInferenceEscrow.Usage memory line) private pure returns (bytes32) {
        bytes memory fields =
            abi.encode(line.requestId, line.user, line.provider, line.tokens, line.amount);
        return keccak256(bytes.concat(keccak256(fields)));
    }

    function _pair(bytes32 a, bytes32 b) private pure returns (bytes32) {
        return a < b ? keccak256(abi.encode(a, b)) : keccak256(abi.encode(b, a));
    }

    function _proof(uint256 i) private view returns (bytes32[] memory proof) {
        proof = new bytes32[](2);
        proof[0] = leaves[i ^ 1];
        proof[1] = i < 2 ? _pair(leaves[2], leaves[3]) : _pair(leaves[0], leaves[1]);
    }
}
