// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {Ownable} from "@openzeppelin/contracts/access/Ownable.sol";
import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";

/// @notice The escrow of the specification (section 9.2), for `benchmarks.gas` to compare with: the
/// same storage, events and transfers. Its flaws are kept as well; nobody should deploy it.
contract SpecificationEscrow is Ownable {
    struct Escrow {
        address user;
        uint256 amount;
        bool released;
        bool cancelled;
    }

    IERC20 public farToken;
    mapping(bytes32 requestId => Escrow) public escrows;

    event EscrowCreated(bytes32 indexed requestId, address user, uint256 amount);
    event EscrowReleased(bytes32 indexed requestId, address[] providers, uint256[] amounts);

    constructor(address token) Ownable(msg.sender) {
        farToken = IERC20(token);
    }

    function createEscrow(bytes32 requestId, uint256 amount) external {
        require(escrows[requestId].amount == 0, "Escrow exists");
        require(farToken.transferFrom(msg.sender, address(this), amount));
        escrows[requestId] = Escrow(msg.sender, amount, false, false);
        emit EscrowCreated(requestId, msg.sender, amount);
    }

    function releaseMultiple(
        bytes32 requestId,
        address[] calldata providers,
        uint256[] calldata amounts
    ) external onlyOwner {
        Escrow storage escrow = escrows[requestId];
        require(!escrow.released, "Already released");
        require(!escrow.cancelled, "Cancelled");
        require(providers.length == amounts.length, "Length mismatch");
        uint256 total = 0;
        for (uint256 i = 0; i < amounts.length; i++) {
            total += amounts[i];
        }
        require(total <= escrow.amount, "Exceeds escrow");
        for (uint256 i = 0; i < providers.length; i++) {
            require(farToken.transfer(providers[i], amounts[i]));
        }
        if (total < escrow.amount) {
            require(farToken.transfer(escrow.user, escrow.amount - total));
        }
        escrow.released = true;
        emit EscrowReleased(requestId, providers, amounts);
    }
}
