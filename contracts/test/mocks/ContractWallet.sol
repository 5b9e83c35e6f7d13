// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {IERC1271} from "@openzeppelin/contracts/interfaces/IERC1271.sol";

/// @notice A wallet that signs by approving a digest beforehand, whatever the signature's bytes.
contract ContractWallet is IERC1271 {
    mapping(bytes32 digest => bool) private _approved;

    function approveDigest(bytes32 digest) external {
        _approved[digest] = true;
    }

    function isValidSignature(bytes32 digest, bytes calldata) external view returns (bytes4) {
        return _approved[digest] ? IERC1271.isValidSignature.selector : bytes4(0xffffffff);
    }
}
