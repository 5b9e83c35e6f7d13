// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";

/// @title IInferenceEscrow
/// @notice Holds what users pay for inference until the operator settles what providers are owed.
///
/// Money enters as a *deposit* (prepaid, spent by many requests) or as an *escrow* (one request),
/// becomes a *credit* when the operator settles or releases, and leaves when its owner claims it.
///
/// The operator's functions book credits and never send tokens. A transfer can be refused by its
/// recipient's side (a token that runs the recipient's code, a frozen account), and one refusal
/// would then undo the payment of everyone in the same transaction. Claiming fails alone.
interface IInferenceEscrow {
    // ---------------------------------------------------------------- types

    /// @param user whose deposit pays
    /// @param amount base units of FAR
    struct Debit {
        address user;
        uint256 amount;
    }

    /// @param provider whose credit grows
    /// @param amount base units of FAR
    struct Credit {
        address provider;
        uint256 amount;
    }

    /// @notice The arguments of one `releaseMultiple`, as an item of `releaseBatch`.
    struct Release {
        address user;
        bytes32 requestId;
        address[] providers;
        uint256[] amounts;
    }

    /// @notice An escrow is created once and closed once; a closed one is never opened again.
    enum EscrowState {
        None,
        Open,
        Released,
        Cancelled
    }

    /// @param amount what the user paid in, also after the escrow is closed
    /// @param deadline from this time on the user may cancel (Unix seconds)
    /// @param state where the escrow stands
    struct Escrow {
        uint256 amount;
        uint64 deadline;
        EscrowState state;
    }

    // --------------------------------------------------------------- events

    event Deposited(address indexed payer, address indexed user, uint256 amount);

    /// @notice One a batch: `debited == credited + fee`.
    event BatchSettled(bytes32 indexed batchId, uint256 debited, uint256 credited, uint256 fee);
    event Debited(bytes32 indexed batchId, address indexed user, uint256 amount);
    /// @notice One a credit, and one for the fee: within a batch Debited and Credited balance.
    event Credited(bytes32 indexed batchId, address indexed provider, uint256 amount);

    event Claimed(address indexed account, address indexed to, uint256 amount);

    event EscrowCreated(
        bytes32 indexed escrowId,
        address indexed user,
        bytes32 indexed requestId,
        uint256 amount,
        uint64 deadline
    );
    /// @notice One a provider paid from an escrow.
    event EscrowCredited(bytes32 indexed escrowId, address indexed provider, uint256 amount);
    /// @notice One an escrow released: `paid + refunded` is the escrow's amount.
    event EscrowReleased(
        bytes32 indexed escrowId, address indexed user, uint256 paid, uint256 refunded
    );
    event EscrowCancelled(bytes32 indexed escrowId, address indexed user, uint256 refunded);
    /// @param reason the ABI-encoded error with which `releaseMultiple` would have reverted
    event ReleaseSkipped(bytes32 indexed escrowId, bytes reason);

    event FeeRecipientChanged(address indexed previous, address indexed current);

    // --------------------------------------------------------------- errors

    error InferenceEscrow_ZeroAddress();
    error InferenceEscrow_ZeroAmount();
    /// @notice The token moved another amount than it was asked to, as with a fee on transfer.
    error InferenceEscrow_InexactTransfer(uint256 expected, uint256 received);
    error InferenceEscrow_BatchAlreadySettled(bytes32 batchId);
    error InferenceEscrow_BatchUnbalanced(uint256 debited, uint256 credited, uint256 fee);
    error InferenceEscrow_InsufficientDeposit(address user, uint256 deposit, uint256 debit);
    error InferenceEscrow_NothingToClaim(address account);
    /// @notice Tokens sent to the escrow contract itself would belong to nobody.
    error InferenceEscrow_ClaimToSelf();
    error InferenceEscrow_EscrowExists(bytes32 escrowId);
    error InferenceEscrow_EscrowNotOpen(bytes32 escrowId, EscrowState state);
    error InferenceEscrow_LengthMismatch(uint256 providers, uint256 amounts);
    error InferenceEscrow_ExceedsEscrow(bytes32 escrowId, uint256 amount);
    error InferenceEscrow_CancelTooEarly(bytes32 escrowId, uint256 deadline);
    error InferenceEscrow_NotUserNorOperator(address caller);
    /// @notice Without an operator nothing could be settled or released any more.
    error InferenceEscrow_OperatorRequired();

    // -------------------------------------------------------------- prepaid

    /// @notice Pays `amount` into the caller's own deposit.
    ///
    /// Requirements:
    /// - `amount` is above zero
    /// - the caller holds `amount` and has approved this contract for it
    /// - exactly `amount` arrives: a token that takes a fee on transfer is refused
    function deposit(uint256 amount) external;

    /// @notice Pays `amount` from the caller into the deposit of `user`.
    ///
    /// Requirements:
    /// - those of `deposit`
    /// - `user` is not the zero address
    function depositFor(address user, uint256 amount) external;

    /// @notice Nets any number of requests: takes from deposits, gives credits and the fee.
    /// A user or provider may appear more than once.
    ///
    /// Requirements:
    /// - the caller is the operator
    /// - `batchId` was never settled, so that a batch sent twice is paid once
    /// - no debit is above what is then left of its user's deposit
    /// - no provider is the zero address
    /// - the debits sum to the credits plus `fee`
    function settle(
        bytes32 batchId,
        Debit[] calldata debits,
        Credit[] calldata credits,
        uint256 fee
    ) external;

    /// @notice Sends the caller's whole credit to the caller.
    ///
    /// Requirements:
    /// - the caller's credit is above zero
    function claim() external;

    /// @notice Sends the caller's whole credit to `to`.
    ///
    /// Requirements:
    /// - the caller's credit is above zero
    /// - `to` is neither the zero address nor this contract
    function claimTo(address to) external;

    // ---------------------------------------------------------- per request

    /// @notice Locks `amount` of the caller for one request. The escrow is keyed by the caller as
    /// well, so that nobody can occupy another user's request id.
    ///
    /// Requirements:
    /// - `amount` is above zero
    /// - the caller never used `requestId` before
    /// - the caller holds `amount` and has approved this contract for it
    /// - exactly `amount` arrives
    function createEscrow(bytes32 requestId, uint256 amount) external;

    /// @notice Closes an escrow: credits `amounts` to `providers`, and the rest to the user.
    /// The rest is a credit too, and can be claimed at once. It may still be released after the
    /// deadline, as long as the user has not cancelled.
    ///
    /// Requirements:
    /// - the caller is the operator
    /// - the escrow is open
    /// - `providers` and `amounts` are of one length
    /// - no provider is the zero address
    /// - the amounts sum to no more than the escrow
    function releaseMultiple(
        address user,
        bytes32 requestId,
        address[] calldata providers,
        uint256[] calldata amounts
    ) external;

    /// @notice Does `releaseMultiple` for each item. An item that does not meet its requirements
    /// is left as it was and reported by `ReleaseSkipped`; the others are released.
    ///
    /// Requirements:
    /// - the caller is the operator
    function releaseBatch(Release[] calldata items) external;

    /// @notice Closes an escrow and credits its whole amount to the user.
    ///
    /// Requirements:
    /// - the caller is the operator, or is `user` and the escrow's deadline has come, so that a
    ///   user cannot cancel under a running job
    /// - the escrow is open
    function cancel(address user, bytes32 requestId) external;

    // ----------------------------------------------------------- the owner's

    /// @notice Sends the fees of later batches to `recipient`. Earlier fees stay where they are.
    ///
    /// Requirements:
    /// - the caller is the owner
    /// - `recipient` is not the zero address
    function setFeeRecipient(address recipient) external;

    // ---------------------------------------------------------------- views

    /// @notice How long after its creation a user cannot cancel an escrow, in seconds.
    function CANCEL_DELAY() external view returns (uint256);

    /// @notice The token in which everything here is counted.
    function token() external view returns (IERC20);

    /// @notice The account that the fees of batches are credited to.
    function feeRecipient() external view returns (address);

    /// @notice What is left of the user's prepaid money.
    function depositOf(address user) external view returns (uint256);

    /// @notice What the account can claim now: earnings, fees and refunds.
    function creditOf(address account) external view returns (uint256);

    /// @notice All that the account ever earned, claimed or not, without refunds. Never decreases.
    function earnedOf(address account) external view returns (uint256);

    /// @notice Whether the batch was settled.
    function batchSettled(bytes32 batchId) external view returns (bool);

    /// @notice The escrow of a user's request; its state is `None` where there is none.
    function escrowOf(address user, bytes32 requestId) external view returns (Escrow memory);

    /// @notice The id that events give to the escrow of a user's request:
    /// `keccak256(abi.encode(block.chainid, address(this), user, requestId))`.
    function escrowIdOf(address user, bytes32 requestId) external view returns (bytes32);

    /// @notice The sum of `depositOf` over all users.
    function totalDeposits() external view returns (uint256);

    /// @notice The sum of `creditOf` over all accounts.
    function totalCredits() external view returns (uint256);

    /// @notice The sum of all open escrows.
    function totalEscrowed() external view returns (uint256);
}
