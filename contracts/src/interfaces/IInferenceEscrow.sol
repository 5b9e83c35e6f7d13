// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";

/// @title IInferenceEscrow
/// @notice Holds what users pay for inference until the settler books what providers are owed.
///
/// Money enters as a *deposit* (prepaid, spent by many requests) or as an *escrow* (one request),
/// becomes a *credit* when the settler settles or releases, and leaves when its owner claims it. A
/// user takes a deposit back by asking, waiting for `WITHDRAWAL_DELAY`, and withdrawing.
///
/// Three roles, apart from each other: the *admin* (OpenZeppelin's default admin: two steps and a
/// delay) appoints the others and sets the daily ceiling; the *settler* books debits; the *pauser*
/// pauses and unpauses. What bounds the settler: the cap that each user signed, and the daily
/// ceiling on all debits together. None of them can touch a credit, stop a withdrawal or a claim,
/// or change the code.
///
/// The settler's functions book credits and never send tokens. A transfer can be refused by its
/// recipient's side (a token that runs the recipient's code, a frozen account), and one refusal
/// would then undo the payment of everyone in the same transaction. Claiming fails alone.
interface IInferenceEscrow {
    // ---------------------------------------------------------------- types

    /// @notice One debit or credit of a batch: whose account, in the first 20 bytes, and how many
    /// base units of FAR, in the last 12: `bytes32(bytes.concat(bytes20(account), bytes12(amount)))`.
    /// As a struct, the same would cost twice the calldata and twice the log.
    type Line is bytes32;

    /// @notice One line of a batch's usage: what one request paid one provider. The fee is a line
    /// as well, for the fee recipient and no tokens, so that the lines add up to the debits.
    struct Usage {
        bytes32 requestId;
        address user;
        address provider;
        uint256 tokens;
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
        uint96 amount;
        uint64 deadline;
        EscrowState state;
    }

    /// @notice What a deployment is made with. Only the ceiling can be changed later.
    /// @param withdrawalDelay `WITHDRAWAL_DELAY`, in seconds
    /// @param dormancy `DORMANCY`, in seconds
    /// @param dailyCeiling the first `dailyCeiling`, in base units of FAR
    struct Terms {
        uint256 withdrawalDelay;
        uint256 dormancy;
        uint256 dailyCeiling;
    }

    /// @notice Who may do what at first. The admin can change all of it.
    /// @param admin appoints settlers and pausers
    /// @param adminDelay how long the admin's place waits before it passes on, in seconds
    /// @param settler books debits and releases
    /// @param pauser pauses and unpauses
    /// @param feeRecipient is credited with the fees of batches
    struct Roles {
        address admin;
        uint48 adminDelay;
        address settler;
        address pauser;
        address feeRecipient;
    }

    /// @param amount what was asked for; zero where nothing is asked
    /// @param readyAt from this time on it can be had (Unix seconds)
    struct Pending {
        uint96 amount;
        uint64 readyAt;
    }

    // --------------------------------------------------------------- events

    event Deposited(address indexed payer, address indexed user, uint256 amount);

    event WithdrawalRequested(address indexed user, uint256 amount, uint64 readyAt);
    event WithdrawalCancelled(address indexed user);
    event Withdrawn(address indexed user, address indexed to, uint256 amount);

    /// @param maximum all that may ever be debited from the user, from the first debit on
    event CapRaised(address indexed user, uint256 maximum);
    event CapLoweringRequested(address indexed user, uint256 maximum, uint64 readyAt);
    event CapLoweringCancelled(address indexed user);
    event CapLowered(address indexed user, uint256 maximum);

    /// @notice One a batch, the last of its transaction: `debited == credited + fee`.
    event BatchSettled(
        bytes32 indexed batchId,
        bytes32 indexed usageRoot,
        uint256 debited,
        uint256 credited,
        uint256 fee
    );
    /// @notice One a batch: every debit and every credit, as they were passed to `settle`. An
    /// event for each line would add a quarter to what a batch costs.
    event BatchLines(bytes32 indexed batchId, Line[] debits, Line[] credits);
    /// @notice One a batch that has a fee.
    event FeeCredited(bytes32 indexed batchId, address indexed recipient, uint256 amount);

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
    event DailyCeilingChanged(uint256 previous, uint256 current);

    // --------------------------------------------------------------- errors

    /// @notice With these terms money could be held for ever, or for no time at all.
    error InferenceEscrow_TermsInvalid();
    /// @notice The admin's place passes on and is never given up: nobody else can appoint a settler.
    error InferenceEscrow_AdminRequired();
    error InferenceEscrow_ZeroAddress();
    error InferenceEscrow_ZeroAmount();
    /// @notice The token moved another amount than it was asked to, as with a fee on transfer.
    error InferenceEscrow_InexactTransfer(uint256 expected, uint256 received);
    /// @notice More than the contract counts with: 2^96 - 1 base units, 79 billion FAR, are the
    /// most that it holds for all together, that one cap allows, and that a ceiling can be.
    error InferenceEscrow_AmountTooLarge(uint256 amount);
    error InferenceEscrow_NothingRequested(address user);
    error InferenceEscrow_TooEarly(uint256 readyAt);
    error InferenceEscrow_InsufficientDeposit(address user, uint256 deposit, uint256 asked);
    error InferenceEscrow_CapExceeded(address user, uint256 left, uint256 debit);
    error InferenceEscrow_CapExpired(uint256 deadline);
    error InferenceEscrow_CapSignatureInvalid(address user);
    /// @notice A signed cap only raises; lowering has its own function, and a delay.
    error InferenceEscrow_CapNotRaised(uint256 current, uint256 maximum);
    error InferenceEscrow_CapNotLowered(uint256 current, uint256 maximum);
    error InferenceEscrow_DailyCeilingExceeded(uint256 left, uint256 debited);
    error InferenceEscrow_BatchAlreadySettled(bytes32 batchId);
    error InferenceEscrow_BatchUnbalanced(uint256 debited, uint256 credited, uint256 fee);
    /// @notice A batch without a root could not be told from one that was never settled.
    error InferenceEscrow_ZeroUsageRoot();
    error InferenceEscrow_NothingToClaim(address account);
    /// @notice What the escrow contract itself were given would belong to nobody.
    error InferenceEscrow_RecipientIsEscrow();
    error InferenceEscrow_EscrowExists(bytes32 escrowId);
    error InferenceEscrow_EscrowNotOpen(bytes32 escrowId, EscrowState state);
    error InferenceEscrow_LengthMismatch(uint256 providers, uint256 amounts);
    error InferenceEscrow_ExceedsEscrow(bytes32 escrowId, uint256 amount);
    error InferenceEscrow_CancelTooEarly(bytes32 escrowId, uint256 deadline);
    error InferenceEscrow_NotUserNorSettler(address caller);

    // -------------------------------------------------------------- prepaid

    /// @notice Pays `amount` into the caller's own deposit.
    ///
    /// Requirements:
    /// - the contract is not paused
    /// - `amount` is above zero
    /// - the caller holds `amount` and has approved this contract for it
    /// - exactly `amount` arrives: a token that takes a fee on transfer is refused
    /// - the contract then holds no more than it counts with
    function deposit(uint256 amount) external;

    /// @notice Pays `amount` from the caller into the deposit of `user`. A withdrawal that `user`
    /// has asked for keeps its amount and its time.
    ///
    /// Requirements:
    /// - those of `deposit`
    /// - `user` is neither the zero address nor this contract
    function depositFor(address user, uint256 amount) external;

    /// @notice `deposit` with the caller's ERC-2612 permit instead of an approval before. A permit
    /// that fails, because somebody has already submitted it, is passed over: what counts is
    /// whether the allowance is then there.
    ///
    /// Requirements:
    /// - those of `deposit`
    function depositWithPermit(uint256 amount, uint256 deadline, uint8 v, bytes32 r, bytes32 s)
        external;

    /// @notice Starts the delay after which the caller may withdraw up to `amount`. Replaces an
    /// earlier request, and its time. Until the money is out it can still be debited, also below
    /// `amount`: it may be owed already. A request does not expire, so whoever does work on credit
    /// has to leave `amount` out of account from this event on; the delay covers what came before.
    ///
    /// Requirements:
    /// - `amount` is above zero and not above the caller's deposit
    function requestWithdrawal(uint256 amount) external;

    /// @notice Takes the caller's request back.
    ///
    /// Requirements:
    /// - the caller has asked for a withdrawal
    function cancelWithdrawal() external;

    /// @notice Sends to `to` what the caller has asked for, or what is left of the deposit if that
    /// is less, and ends the request. While the contract is dormant, a request needs no delay.
    /// Works while paused.
    ///
    /// Requirements:
    /// - the caller has asked for a withdrawal, and its delay is over or the contract is dormant
    /// - something is left of the caller's deposit
    /// - `to` is neither the zero address nor this contract
    function withdraw(address to) external;

    // ---------------------------------------------------------------- caps

    /// @notice Lets the settler debit `user` up to `maximum` in total, counted from the user's very
    /// first debit on. Anybody may submit what the user has signed (EIP-712 type
    /// `Cap(address user,uint256 maximum,uint256 deadline,uint256 nonce)`); contract wallets sign
    /// by ERC-1271. Ends a lowering that the user has asked for.
    ///
    /// Requirements:
    /// - `deadline` has not passed
    /// - the signature is the user's, over the user's next nonce
    /// - `maximum` is above the user's present cap, and not above 2^96 - 1
    function raiseCap(address user, uint256 maximum, uint256 deadline, bytes calldata signature)
        external;

    /// @notice Starts the delay after which the caller may lower the own cap to `maximum`, and
    /// voids every cap that the caller has signed and nobody submitted. The delay is that of a
    /// withdrawal: what is owed by now can still be debited. New work has to go by the lower cap.
    ///
    /// Requirements:
    /// - `maximum` is below the caller's present cap
    function requestCapLowering(uint256 maximum) external;

    /// @notice Takes the caller's request back.
    ///
    /// Requirements:
    /// - the caller has asked for a lowering
    function cancelCapLowering() external;

    /// @notice Lowers the caller's cap to what was asked for, or to what was debited by then if
    /// that is more. While the contract is dormant, a request needs no delay.
    ///
    /// Requirements:
    /// - the caller has asked for a lowering, and its delay is over or the contract is dormant
    function lowerCap() external;

    // ----------------------------------------------------------- settlement

    /// @notice Nets any number of requests: takes from deposits, gives credits and the fee.
    /// A user or provider may appear more than once.
    ///
    /// Requirements:
    /// - the caller is the settler, and the contract is not paused
    /// - `batchId` was never settled, so that a batch sent twice is paid once
    /// - `usageRoot` is not zero
    /// - no debit is above what is then left of its user's deposit, and of its user's cap
    /// - no provider is the zero address
    /// - the debits sum to the credits plus `fee`
    /// - all debits and releases of the day (UTC) stay within the daily ceiling
    function settle(
        bytes32 batchId,
        Line[] calldata debits,
        Line[] calldata credits,
        uint256 fee,
        bytes32 usageRoot
    ) external;

    /// @notice Sends the caller's whole credit to the caller. Works while paused.
    ///
    /// Requirements:
    /// - the caller's credit is above zero
    function claim() external;

    /// @notice Sends the caller's whole credit to `to`. Works while paused.
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
    /// - the contract is not paused
    /// - `amount` is above zero
    /// - the caller never used `requestId` before
    /// - the caller holds `amount` and has approved this contract for it
    /// - exactly `amount` arrives, and the contract then holds no more than it counts with
    function createEscrow(bytes32 requestId, uint256 amount) external;

    /// @notice Closes an escrow: credits `amounts` to `providers`, and the rest to the user.
    /// The rest is a credit too, and can be claimed at once. It may still be released after the
    /// deadline, as long as the user has not cancelled.
    ///
    /// Requirements:
    /// - the caller is the settler, and the contract is not paused
    /// - the escrow is open
    /// - `providers` and `amounts` are of one length
    /// - no provider is the zero address
    /// - the amounts sum to no more than the escrow, nor to more than is left of the daily ceiling
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
    /// - the caller is the settler, and the contract is not paused
    function releaseBatch(Release[] calldata items) external;

    /// @notice Closes an escrow and credits its whole amount to the user. Works while paused.
    ///
    /// Requirements:
    /// - the caller is the settler, or is `user` and the escrow's deadline has come, so that a
    ///   user cannot cancel under a running job
    /// - the escrow is open
    function cancel(address user, bytes32 requestId) external;

    // ----------------------------------------------------------- the admin's

    /// @notice Sends the fees of later batches to `recipient`. Earlier fees stay where they are.
    ///
    /// Requirements:
    /// - the caller is the admin
    /// - `recipient` is neither the zero address nor this contract
    function setFeeRecipient(address recipient) external;

    /// @notice Bounds what the settler can debit and release within one day (UTC). Takes effect at
    /// once, also for the day that has begun.
    ///
    /// Requirements:
    /// - the caller is the admin
    /// - `ceiling` is not above 2^96 - 1
    function setDailyCeiling(uint256 ceiling) external;

    // ---------------------------------------------------------- the pauser's

    /// @notice Stops deposits, new escrows, settlement and releases. Withdrawals, claims, caps and
    /// cancelling go on.
    ///
    /// Requirements:
    /// - the caller is the pauser, and the contract is not paused
    function pause() external;

    /// @notice Ends a pause.
    ///
    /// Requirements:
    /// - the caller is the pauser, and the contract is paused
    function unpause() external;

    // ---------------------------------------------------------------- views

    /// @notice The role that settles and releases.
    function SETTLER_ROLE() external view returns (bytes32);

    /// @notice The role that pauses and unpauses.
    function PAUSER_ROLE() external view returns (bytes32);

    /// @notice How long after its creation a user cannot cancel an escrow, in seconds.
    function CANCEL_DELAY() external view returns (uint256);

    /// @notice How long a withdrawal and the lowering of a cap wait, in seconds: longer than what
    /// is owed waits for its settlement, so that nobody can run from it.
    function WITHDRAWAL_DELAY() external view returns (uint256);

    /// @notice After so many seconds without a settled batch the contract is dormant.
    function DORMANCY() external view returns (uint256);

    /// @notice The token in which everything here is counted.
    function token() external view returns (IERC20);

    /// @notice The account that the fees of batches are credited to.
    function feeRecipient() external view returns (address);

    /// @notice What the settler may debit and release within one day, in base units.
    function dailyCeiling() external view returns (uint256);

    /// @notice What is left of today's ceiling.
    function leftToday() external view returns (uint256);

    /// @notice When the last batch was settled; the time of deployment where there is none.
    function lastSettledAt() external view returns (uint256);

    /// @notice Whether no batch was settled for `DORMANCY`, so that delays are waived.
    function dormant() external view returns (bool);

    /// @notice What is left of the user's prepaid money.
    function depositOf(address user) external view returns (uint256);

    /// @notice The withdrawal that the user has asked for.
    function withdrawalOf(address user) external view returns (Pending memory);

    /// @notice All that may ever be debited from the user, and what was debited of it so far.
    function capOf(address user) external view returns (uint256 maximum, uint256 debited);

    /// @notice The lowering that the user has asked for; `readyAt` is zero where there is none.
    function capLoweringOf(address user) external view returns (Pending memory);

    /// @notice The EIP-712 digest that a user signs to raise the own cap.
    function capDigest(address user, uint256 maximum, uint256 deadline, uint256 nonce)
        external
        view
        returns (bytes32);

    /// @notice What the account can claim now: earnings, fees and refunds.
    function creditOf(address account) external view returns (uint256);

    /// @notice All that the account ever earned, claimed or not, without refunds. Never decreases.
    function earnedOf(address account) external view returns (uint256);

    /// @notice Whether the batch was settled.
    function batchSettled(bytes32 batchId) external view returns (bool);

    /// @notice The batch's usage root; zero where it was not settled.
    function usageRootOf(bytes32 batchId) external view returns (bytes32);

    /// @notice Whether `line` is one of the batch's. A leaf is the double hash
    /// `keccak256(bytes.concat(keccak256(abi.encode(line))))`, and each pair of nodes is sorted, as
    /// in OpenZeppelin's MerkleProof and standard tree.
    function verifyUsage(bytes32 batchId, Usage calldata line, bytes32[] calldata proof)
        external
        view
        returns (bool);

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
