// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IInferenceEscrow} from "./interfaces/IInferenceEscrow.sol";
import {Ownable} from "@openzeppelin/contracts/access/Ownable.sol";
import {Ownable2Step} from "@openzeppelin/contracts/access/Ownable2Step.sol";
import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {ReentrancyGuard} from "@openzeppelin/contracts/utils/ReentrancyGuard.sol";

/// @title InferenceEscrow
/// @notice See {IInferenceEscrow}. The owner is the operator.
///
/// Every token held here is counted in exactly one of three totals: deposits, credits, escrows.
/// The token's `balanceOf` is never the source of an amount: tokens that somebody sends here
/// unasked change nothing. Tokens move in `_pull` and `claimTo` only, both guarded against reentry.
contract InferenceEscrow is IInferenceEscrow, Ownable2Step, ReentrancyGuard {
    using SafeERC20 for IERC20;

    /// @inheritdoc IInferenceEscrow
    /// @dev Far above the longest job plus the hour that a payment waits before it is released.
    uint256 public constant CANCEL_DELAY = 1 days;

    /// @inheritdoc IInferenceEscrow
    IERC20 public immutable token;

    /// @inheritdoc IInferenceEscrow
    address public feeRecipient;

    /// @inheritdoc IInferenceEscrow
    uint256 public totalDeposits;
    /// @inheritdoc IInferenceEscrow
    uint256 public totalCredits;
    /// @inheritdoc IInferenceEscrow
    uint256 public totalEscrowed;

    /// @inheritdoc IInferenceEscrow
    mapping(address user => uint256) public depositOf;
    /// @inheritdoc IInferenceEscrow
    mapping(address account => uint256) public creditOf;
    /// @inheritdoc IInferenceEscrow
    mapping(address account => uint256) public earnedOf;
    /// @inheritdoc IInferenceEscrow
    mapping(bytes32 batchId => bool) public batchSettled;

    mapping(bytes32 escrowId => Escrow) private _escrows;

    /// @param token_ the ERC-20 that pays; one that takes a fee on transfer will be refused
    /// @param operator the first owner
    /// @param feeRecipient_ credited with the fees of batches
    constructor(IERC20 token_, address operator, address feeRecipient_) Ownable(operator) {
        if (address(token_) == address(0)) revert InferenceEscrow_ZeroAddress();
        token = token_;
        _setFeeRecipient(feeRecipient_);
    }

    // -------------------------------------------------------------- prepaid

    /// @inheritdoc IInferenceEscrow
    function deposit(uint256 amount) external {
        depositFor(msg.sender, amount);
    }

    /// @inheritdoc IInferenceEscrow
    function depositFor(address user, uint256 amount) public nonReentrant {
        if (user == address(0)) revert InferenceEscrow_ZeroAddress();
        _pull(amount);
        depositOf[user] += amount;
        totalDeposits += amount;
        emit Deposited(msg.sender, user, amount);
    }

    /// @inheritdoc IInferenceEscrow
    function settle(
        bytes32 batchId,
        Debit[] calldata debits,
        Credit[] calldata credits,
        uint256 fee
    ) external onlyOwner {
        if (batchSettled[batchId]) revert InferenceEscrow_BatchAlreadySettled(batchId);
        batchSettled[batchId] = true;

        uint256 debited = _debitAll(batchId, debits);
        uint256 credited = _creditAll(batchId, credits);
        if (debited != credited + fee) {
            revert InferenceEscrow_BatchUnbalanced(debited, credited, fee);
        }
        if (fee != 0) {
            _earn(feeRecipient, fee);
            emit Credited(batchId, feeRecipient, fee);
        }
        totalDeposits -= debited;
        totalCredits += debited;
        emit BatchSettled(batchId, debited, credited, fee);
    }

    /// @inheritdoc IInferenceEscrow
    function claim() external {
        claimTo(msg.sender);
    }

    /// @inheritdoc IInferenceEscrow
    function claimTo(address to) public nonReentrant {
        if (to == address(0)) revert InferenceEscrow_ZeroAddress();
        if (to == address(this)) revert InferenceEscrow_ClaimToSelf();
        uint256 amount = creditOf[msg.sender];
        if (amount == 0) revert InferenceEscrow_NothingToClaim(msg.sender);

        creditOf[msg.sender] = 0;
        totalCredits -= amount;
        emit Claimed(msg.sender, to, amount);
        token.safeTransfer(to, amount);
    }

    // ---------------------------------------------------------- per request

    /// @inheritdoc IInferenceEscrow
    function createEscrow(bytes32 requestId, uint256 amount) external nonReentrant {
        bytes32 escrowId = escrowIdOf(msg.sender, requestId);
        Escrow storage escrow = _escrows[escrowId];
        if (escrow.state != EscrowState.None) revert InferenceEscrow_EscrowExists(escrowId);

        _pull(amount);
        // A time in seconds fits in 64 bits for the next half a trillion years.
        // forge-lint: disable-next-line(unsafe-typecast)
        uint64 deadline = uint64(block.timestamp + CANCEL_DELAY);
        escrow.amount = amount;
        escrow.deadline = deadline;
        escrow.state = EscrowState.Open;
        totalEscrowed += amount;
        emit EscrowCreated(escrowId, msg.sender, requestId, amount, deadline);
    }

    /// @inheritdoc IInferenceEscrow
    function releaseMultiple(
        address user,
        bytes32 requestId,
        address[] calldata providers,
        uint256[] calldata amounts
    ) external onlyOwner {
        bytes32 escrowId = escrowIdOf(user, requestId);
        bytes memory objection = _objection(escrowId, providers, amounts);
        if (objection.length != 0) _revertWith(objection);
        _release(escrowId, user, providers, amounts);
    }

    /// @inheritdoc IInferenceEscrow
    function releaseBatch(Release[] calldata items) external onlyOwner {
        for (uint256 i = 0; i < items.length; ++i) {
            Release calldata item = items[i];
            bytes32 escrowId = escrowIdOf(item.user, item.requestId);
            bytes memory objection = _objection(escrowId, item.providers, item.amounts);
            if (objection.length != 0) {
                emit ReleaseSkipped(escrowId, objection);
            } else {
                _release(escrowId, item.user, item.providers, item.amounts);
            }
        }
    }

    /// @inheritdoc IInferenceEscrow
    function cancel(address user, bytes32 requestId) external {
        bool byOperator = msg.sender == owner();
        if (!byOperator && msg.sender != user) {
            revert InferenceEscrow_NotUserNorOperator(msg.sender);
        }
        bytes32 escrowId = escrowIdOf(user, requestId);
        Escrow storage escrow = _escrows[escrowId];
        if (escrow.state != EscrowState.Open) {
            revert InferenceEscrow_EscrowNotOpen(escrowId, escrow.state);
        }
        if (!byOperator && block.timestamp < escrow.deadline) {
            revert InferenceEscrow_CancelTooEarly(escrowId, escrow.deadline);
        }

        uint256 amount = escrow.amount;
        escrow.state = EscrowState.Cancelled;
        totalEscrowed -= amount;
        totalCredits += amount;
        creditOf[user] += amount;
        emit EscrowCancelled(escrowId, user, amount);
    }

    // ----------------------------------------------------------- the owner's

    /// @inheritdoc IInferenceEscrow
    function setFeeRecipient(address recipient) external onlyOwner {
        _setFeeRecipient(recipient);
    }

    /// @notice Refused: without an owner every deposit would be locked for ever.
    function renounceOwnership() public view override onlyOwner {
        revert InferenceEscrow_OperatorRequired();
    }

    // ---------------------------------------------------------------- views

    /// @inheritdoc IInferenceEscrow
    function escrowOf(address user, bytes32 requestId) external view returns (Escrow memory) {
        return _escrows[escrowIdOf(user, requestId)];
    }

    /// @inheritdoc IInferenceEscrow
    function escrowIdOf(address user, bytes32 requestId) public view returns (bytes32) {
        return keccak256(abi.encode(block.chainid, address(this), user, requestId));
    }

    // ------------------------------------------------------------- internal

    /// @dev Takes exactly `amount` from the caller. Balances are compared, not counted on.
    function _pull(uint256 amount) private {
        if (amount == 0) revert InferenceEscrow_ZeroAmount();
        uint256 before = token.balanceOf(address(this));
        token.safeTransferFrom(msg.sender, address(this), amount);
        uint256 received = token.balanceOf(address(this)) - before;
        if (received != amount) revert InferenceEscrow_InexactTransfer(amount, received);
    }

    function _debitAll(bytes32 batchId, Debit[] calldata debits) private returns (uint256 sum) {
        for (uint256 i = 0; i < debits.length; ++i) {
            address user = debits[i].user;
            uint256 amount = debits[i].amount;
            uint256 left = depositOf[user];
            if (amount > left) revert InferenceEscrow_InsufficientDeposit(user, left, amount);
            depositOf[user] = left - amount;
            sum += amount;
            emit Debited(batchId, user, amount);
        }
    }

    function _creditAll(bytes32 batchId, Credit[] calldata credits) private returns (uint256 sum) {
        for (uint256 i = 0; i < credits.length; ++i) {
            address provider = credits[i].provider;
            uint256 amount = credits[i].amount;
            if (provider == address(0)) revert InferenceEscrow_ZeroAddress();
            _earn(provider, amount);
            sum += amount;
            emit Credited(batchId, provider, amount);
        }
    }

    /// @dev The caller keeps `totalCredits` in step.
    function _earn(address account, uint256 amount) private {
        creditOf[account] += amount;
        earnedOf[account] += amount;
    }

    /// @dev Why a release is refused, as the ABI-encoded error; empty where it is not. Asked before
    /// anything is written, so that one bad item of a batch can be passed over. Each amount is held
    /// against what the earlier ones left, so that no sum can overflow and block the batch.
    function _objection(bytes32 escrowId, address[] calldata providers, uint256[] calldata amounts)
        private
        view
        returns (bytes memory)
    {
        EscrowState state = _escrows[escrowId].state;
        if (state != EscrowState.Open) {
            return abi.encodeWithSelector(InferenceEscrow_EscrowNotOpen.selector, escrowId, state);
        }
        if (providers.length != amounts.length) {
            return abi.encodeWithSelector(
                InferenceEscrow_LengthMismatch.selector, providers.length, amounts.length
            );
        }
        uint256 max = _escrows[escrowId].amount;
        uint256 left = max;
        for (uint256 i = 0; i < amounts.length; ++i) {
            if (providers[i] == address(0)) {
                return abi.encodeWithSelector(InferenceEscrow_ZeroAddress.selector);
            }
            if (amounts[i] > left) {
                return abi.encodeWithSelector(InferenceEscrow_ExceedsEscrow.selector, escrowId, max);
            }
            left -= amounts[i];
        }
        return "";
    }

    /// @dev Only after `_objection` found nothing.
    function _release(
        bytes32 escrowId,
        address user,
        address[] calldata providers,
        uint256[] calldata amounts
    ) private {
        Escrow storage escrow = _escrows[escrowId];
        escrow.state = EscrowState.Released;

        uint256 amount = escrow.amount;
        uint256 paid = 0;
        for (uint256 i = 0; i < providers.length; ++i) {
            _earn(providers[i], amounts[i]);
            paid += amounts[i];
            emit EscrowCredited(escrowId, providers[i], amounts[i]);
        }
        // A refund is the user's own money: it can be claimed, but it was not earned.
        creditOf[user] += amount - paid;
        totalEscrowed -= amount;
        totalCredits += amount;
        emit EscrowReleased(escrowId, user, paid, amount - paid);
    }

    function _revertWith(bytes memory reason) private pure {
        assembly ("memory-safe") {
            revert(add(reason, 0x20), mload(reason))
        }
    }

    function _setFeeRecipient(address recipient) private {
        if (recipient == address(0)) revert InferenceEscrow_ZeroAddress();
        emit FeeRecipientChanged(feeRecipient, recipient);
        feeRecipient = recipient;
    }
}
