// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {IInferenceEscrow} from "../../src/interfaces/IInferenceEscrow.sol";

/// @notice Short arrays, of one or two.
abstract contract Lines {
    function _debits(address user, uint256 amount)
        internal
        pure
        returns (IInferenceEscrow.Line[] memory)
    {
        return _lines(user, amount);
    }

    function _debits(address user, uint256 amount, address user2, uint256 amount2)
        internal
        pure
        returns (IInferenceEscrow.Line[] memory)
    {
        return _lines(user, amount, user2, amount2);
    }

    function _credits(address provider, uint256 amount)
        internal
        pure
        returns (IInferenceEscrow.Line[] memory)
    {
        return _lines(provider, amount);
    }

    function _credits(address provider, uint256 amount, address provider2, uint256 amount2)
        internal
        pure
        returns (IInferenceEscrow.Line[] memory)
    {
        return _lines(provider, amount, provider2, amount2);
    }

    function _none() internal pure returns (IInferenceEscrow.Line[] memory) {
        return new IInferenceEscrow.Line[](0);
    }

    function _line(address account, uint256 amount) internal pure returns (IInferenceEscrow.Line) {
        bytes12 units = bytes12(_96(amount));
        return IInferenceEscrow.Line.wrap(bytes32(bytes.concat(bytes20(account), units)));
    }

    function _lines(address a, uint256 amount)
        private
        pure
        returns (IInferenceEscrow.Line[] memory lines)
    {
        lines = new IInferenceEscrow.Line[](1);
        lines[0] = _line(a, amount);
    }

    function _lines(address a, uint256 amount, address b, uint256 amount2)
        private
        pure
        returns (IInferenceEscrow.Line[] memory lines)
    {
        lines = new IInferenceEscrow.Line[](2);
        lines[0] = _line(a, amount);
        lines[1] = _line(b, amount2);
    }

    function _array(address a) internal pure returns (address[] memory array) {
        array = new address[](1);
        array[0] = a;
    }

    function _array(address a, address b) internal pure returns (address[] memory array) {
        array = new address[](2);
        array[0] = a;
        array[1] = b;
    }

    function _array(uint256 a) internal pure returns (uint256[] memory array) {
        array = new uint256[](1);
        array[0] = a;
    }

    function _array(uint256 a, uint256 b) internal pure returns (uint256[] memory array) {
        array = new uint256[](2);
        array[0] = a;
        array[1] = b;
    }

    function _96(uint256 amount) internal pure returns (uint96) {
        require(amount <= type(uint96).max);
        // forge-lint: disable-next-line(unsafe-typecast)
        return uint96(amount);
    }
}
