// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IInferenceEscrow} from "./interfaces/IInferenceEscrow.sol";
import {
    AccessControlDefaultAdminRules
} from "@openzeppelin/contracts/access/extensions/AccessControlDefaultAdminRules.sol";
import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {IERC20Permit} from "@openzeppelin/contracts/token/ERC20/extensions/IERC20Permit.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {Nonces} from "@openzeppelin/contracts/utils/Nonces.sol";
import {Pausable} from "@openzeppelin/contracts/utils/Pausable.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";
import {MerkleProof} from "@openzeppelin/contracts/utils/cryptography/MerkleProof.sol";
import {SignatureChecker} from "@openzeppelin/contracts/utils/cryptography/SignatureChecker.sol";
import {Math} from "@openzeppelin/contracts/utils/math/Math.sol";

/// @title InferenceEscrow
/// @notice See {IInferenceEscrow}.
///
/// Every token held here is counted in exactly one of three totals: deposits, credits, escrows.
/// The token's `balanceOf` is never the source of an amount: tokens that somebody sends here
/// unasked change nothing. Tokens move in `_pull`, `withdraw` and `claimTo` only, all guarded
/// against reentry.
///
/// Settlement touches one storage word a line, and that is where its gas goes. A word holds two
/// counters that a line moves by the same amount, so one multiplication by `BOTH` moves them both:
///
///     _users[user]        deposit, lowest 96 bits | what is left of the cap, next 96 bits
///     _accounts[account]  credit, lowest 96 bits  | lifetime earnings, the other 160 bits
///
/// No counter can run into its neighbour. All that the contract holds together is at most `LIMIT`
/// (`_pull` sees to it), so no deposit and no credit is more, nor can it be when one becomes the
/// other. What is left of a cap is never above the cap, which is at most `LIMIT`. Earnings would
/// need 2^64 credits of `LIMIT` each.
contract InferenceEscrow is
    IInferenceEscrow,
    AccessControlDefaultAdminRules,
    Pausable,
    EIP712,
    Nonces,
    ReentrancyGuardTransient
{
    using SafeERC20 for IERC20;

    /// @dev Two counters. A struct, so that a line looks its place up once.
    struct Word {
        uint256 value;
    }

    /// @dev Adds up to `amount` of deposits and of credits: they are always asked for together.
    struct Totals {
        uint96 deposits;
        uint96 credits;
    }

    /// @dev Seconds and days since 1970: 40 and 24 bits last for tens of thousands of years.
    struct Activity {
        uint40 lastSettledAt;
        uint24 day;
        uint96 movedThatDay;
        uint96 ceiling;
    }

    /// @inheritdoc IInferenceEscrow
    bytes32 public constant SETTLER_ROLE = keccak256("SETTLER_ROLE");
    /// @inheritdoc IInferenceEscrow
    bytes32 public constant PAUSER_ROLE = keccak256("PAUSER_ROLE");

    /// @inheritdoc IInferenceEscrow
    /// @dev Far above the longest job plus the hour that a payment waits before it is released.
    uint256 public constant CANCEL_DELAY = 1 days;

    /// @dev Bounds on the terms, so that a slip of the deployer's cannot lock users in.
    uint256 private constant MAX_WITHDRAWAL_DELAY = 30 days;
    uint256 private constant MAX_DORMANCY = 90 days;
    uint256 private constant MAX_ADMIN_DELAY = 30 days;

    uint256 private constant LIMIT = type(uint96).max;
    uint256 private constant SHIFT = 96;
    uint256 private constant BOTH = 1 + 2 ** SHIFT;

    bytes32 private constant CAP =
        keccak256("Cap(address user,uint256 maximum,uint256 deadline,uint256 nonce)");

    /// @inheritdoc IInferenceEscrow
    uint256 public immutable WITHDRAWAL_DELAY;
    /// @inheritdoc IInferenceEscrow
    uint256 public immutable DORMANCY;
    /// @inheritdoc IInferenceEscrow
    IERC20 public immutable token;

    /// @inheritdoc IInferenceEscrow
    address public feeRecipient;

    Activity private _activity;
    Totals private _totals;

    /// @inheritdoc IInferenceEscrow
    uint256 public totalEscrowed;

    /// @inheritdoc IInferenceEscrow
    mapping(bytes32 batchId => bytes32) public usageRootOf;

    mapping(address user => Word) private _users;
    mapping(address account => Word) private _accounts;
    mapping(address user => uint256) private _caps;
    mapping(address user => Pending) private _withdrawals;
    mapping(address user => Pending) private _capLowerings;
    mapping(bytes32 escrowId => Escrow) private _escrows;

    /// @param token_ the ERC-20 that pays; one that takes a fee on transfer will be refused
    /// @param terms delays and the first daily ceiling; see the bounds above
    /// @param roles none of them may be the zero address
    constructor(IERC20 token_, Terms memory terms, Roles memory roles)
        AccessControlDefaultAdminRules(roles.adminDelay, roles.admin)
        EIP712("InferenceEscrow", "1")
    {
        if (
            terms.withdrawalDelay == 0 || terms.withdrawalDelay > MAX_WITHDRAWAL_DELAY
                || terms.dormancy <= terms.withdrawalDelay || terms.dormancy > MAX_DORMANCY
        ) revert InferenceEscrow_TermsInvalid();
        _checkAdminDelay(roles.adminDelay);
        if (
            address(token_) == address(0) || roles.settler == address(0)
                || roles.pauser == address(0)
        ) revert InferenceEscrow_ZeroAddress();

        token = token_;
        WITHDRAWAL_DELAY = terms.withdrawalDelay;
        DORMANCY = terms.dormancy;
        _grantRole(SETTLER_ROLE, roles.settler);
        _grantRole(PAUSER_ROLE, roles.pauser);
        _setFeeRecipient(roles.feeRecipient);
        _setDailyCeiling(terms.dailyCeiling);
        _activity.lastSettledAt = uint40(block.timestamp);
    }

    // -------------------------------------------------------------- prepaid

    /// @inheritdoc IInferenceEscrow
    function deposit(uint256 amount) external {
        depositFor(msg.sender, amount);
    }

    /// @inheritdoc IInferenceEscrow
    function depositFor(address user, uint256 amount) public nonReentrant whenNotPaused {
        _checkRecipient(user);
        _pull(amount);
        _users[user].value += amount;
        _totals.deposits += _narrow(amount);
        emit Deposited(msg.sender, user, amount);
    }

    /// @inheritdoc IInferenceEscrow
    // slither-disable-next-line reentrancy-benign,reentrancy-events
    function depositWithPermit(uint256 amount, uint256 deadline, uint8 v, bytes32 r, bytes32 s)
        external
    {
        try IERC20Permit(address(token))
            .permit(msg.sender, address(this), amount, deadline, v, r, s) {}
            catch {}
        depositFor(msg.sender, amount);
    }

    /// @inheritdoc IInferenceEscrow
    function requestWithdrawal(uint256 amount) external {
        if (amount == 0) revert InferenceEscrow_ZeroAmount();
        uint256 left = depositOf(msg.sender);
        if (amount > left) revert InferenceEscrow_InsufficientDeposit(msg.sender, left, amount);
        Pending memory pending = _pending(amount);
        _withdrawals[msg.sender] = pending;
        emit WithdrawalRequested(msg.sender, amount, pending.readyAt);
    }

    /// @inheritdoc IInferenceEscrow
    function cancelWithdrawal() external {
        if (_withdrawals[msg.sender].readyAt == 0) {
            revert InferenceEscrow_NothingRequested(msg.sender);
        }
        delete _withdrawals[msg.sender];
        emit WithdrawalCancelled(msg.sender);
    }

    /// @inheritdoc IInferenceEscrow
    function withdraw(address to) external nonReentrant {
        _checkRecipient(to);
        uint256 asked = _whenReady(_withdrawals[msg.sender]);
        uint256 amount = Math.min(asked, depositOf(msg.sender));
        if (amount == 0) revert InferenceEscrow_InsufficientDeposit(msg.sender, 0, asked);

        delete _withdrawals[msg.sender];
        _users[msg.sender].value -= amount;
        _totals.deposits -= _narrow(amount);
        emit Withdrawn(msg.sender, to, amount);
        token.safeTransfer(to, amount);
    }

    // ---------------------------------------------------------------- caps

    /// @inheritdoc IInferenceEscrow
    function raiseCap(address user, uint256 maximum, uint256 deadline, bytes calldata signature)
        external
    {
        if (block.timestamp > deadline) revert InferenceEscrow_CapExpired(deadline);
        bytes32 digest = capDigest(user, maximum, deadline, _useNonce(user));
        if (!SignatureChecker.isValidSignatureNowCalldata(user, digest, signature)) {
            revert InferenceEscrow_CapSignatureInvalid(user);
        }
        uint256 current = _caps[user];
        if (maximum <= current) revert InferenceEscrow_CapNotRaised(current, maximum);
        if (maximum > LIMIT) revert InferenceEscrow_AmountTooLarge(maximum);

        delete _capLowerings[user];
        _caps[user] = maximum;
        _users[user].value += (maximum - current) << SHIFT;
        emit CapRaised(user, maximum);
    }

    /// @inheritdoc IInferenceEscrow
    function requestCapLowering(uint256 maximum) external {
        uint256 current = _caps[msg.sender];
        if (maximum >= current) revert InferenceEscrow_CapNotLowered(current, maximum);
        _useNonce(msg.sender);
        Pending memory pending = _pending(maximum);
        _capLowerings[msg.sender] = pending;
        emit CapLoweringRequested(msg.sender, maximum, pending.readyAt);
    }

    /// @inheritdoc IInferenceEscrow
    function cancelCapLowering() external {
        if (_capLowerings[msg.sender].readyAt == 0) {
            revert InferenceEscrow_NothingRequested(msg.sender);
        }
        delete _capLowerings[msg.sender];
        emit CapLoweringCancelled(msg.sender);
    }

    /// @inheritdoc IInferenceEscrow
    function lowerCap() external {
        uint256 asked = _whenReady(_capLowerings[msg.sender]);
        (uint256 current, uint256 debited) = capOf(msg.sender);
        uint256 maximum = Math.max(asked, debited);

        delete _capLowerings[msg.sender];
        _caps[msg.sender] = maximum;
        _users[msg.sender].value -= (current - maximum) << SHIFT;
        emit CapLowered(msg.sender, maximum);
    }

    // ----------------------------------------------------------- settlement

    /// @inheritdoc IInferenceEscrow
    function settle(
        bytes32 batchId,
        Line[] calldata debits,
        Line[] calldata credits,
        uint256 fee,
        bytes32 usageRoot
    ) external onlyRole(SETTLER_ROLE) whenNotPaused {
        if (usageRoot == 0) revert InferenceEscrow_ZeroUsageRoot();
        if (batchSettled(batchId)) revert InferenceEscrow_BatchAlreadySettled(batchId);
        usageRootOf[batchId] = usageRoot;

        uint256 debited = _debitAll(debits);
        uint256 credited = _creditAll(credits);
        if (debited != credited + fee) {
            revert InferenceEscrow_BatchUnbalanced(debited, credited, fee);
        }
        _countToday(debited);
        _activity.lastSettledAt = uint40(block.timestamp);
        _totals.deposits -= _narrow(debited);
        _totals.credits += _narrow(debited);

        emit BatchLines(batchId, debits, credits);
        if (fee != 0) {
            _earn(feeRecipient, fee);
            emit FeeCredited(batchId, feeRecipient, fee);
        }
        emit BatchSettled(batchId, usageRoot, debited, credited, fee);
    }

    /// @inheritdoc IInferenceEscrow
    function claim() external {
        claimTo(msg.sender);
    }

    /// @inheritdoc IInferenceEscrow
    function claimTo(address to) public nonReentrant {
        _checkRecipient(to);
        uint256 amount = creditOf(msg.sender);
        if (amount == 0) revert InferenceEscrow_NothingToClaim(msg.sender);

        _accounts[msg.sender].value -= amount;
        _totals.credits -= _narrow(amount);
        emit Claimed(msg.sender, to, amount);
        token.safeTransfer(to, amount);
    }

    // ---------------------------------------------------------- per request

    /// @inheritdoc IInferenceEscrow
    function createEscrow(bytes32 requestId, uint256 amount) external nonReentrant whenNotPaused {
        bytes32 escrowId = escrowIdOf(msg.sender, requestId);
        if (_escrows[escrowId].state != EscrowState.None) {
            revert InferenceEscrow_EscrowExists(escrowId);
        }
        _pull(amount);
        uint64 deadline = _timeAfter(CANCEL_DELAY);
        _escrows[escrowId] = Escrow(_narrow(amount), deadline, EscrowState.Open);
        totalEscrowed += amount;
        emit EscrowCreated(escrowId, msg.sender, requestId, amount, deadline);
    }

    /// @inheritdoc IInferenceEscrow
    function releaseMultiple(
        address user,
        bytes32 requestId,
        address[] calldata providers,
        uint256[] calldata amounts
    ) external onlyRole(SETTLER_ROLE) whenNotPaused {
        bytes32 escrowId = escrowIdOf(user, requestId);
        bytes memory objection = _objection(escrowId, providers, amounts);
        if (objection.length != 0) _revertWith(objection);
        _release(escrowId, user, providers, amounts);
    }

    /// @inheritdoc IInferenceEscrow
    function releaseBatch(Release[] calldata items) external onlyRole(SETTLER_ROLE) whenNotPaused {
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
        bool bySettler = hasRole(SETTLER_ROLE, msg.sender);
        if (!bySettler && msg.sender != user) revert InferenceEscrow_NotUserNorSettler(msg.sender);
        bytes32 escrowId = escrowIdOf(user, requestId);
        Escrow storage escrow = _escrows[escrowId];
        if (escrow.state != EscrowState.Open) {
            revert InferenceEscrow_EscrowNotOpen(escrowId, escrow.state);
        }
        if (!bySettler && block.timestamp < escrow.deadline) {
            revert InferenceEscrow_CancelTooEarly(escrowId, escrow.deadline);
        }

        escrow.state = EscrowState.Cancelled;
        _refund(user, escrow.amount);
        _closed(escrow.amount);
        emit EscrowCancelled(escrowId, user, escrow.amount);
    }

    // ----------------------------------------------------------- the admin's

    /// @inheritdoc IInferenceEscrow
    function setFeeRecipient(address recipient) external onlyRole(DEFAULT_ADMIN_ROLE) {
        _setFeeRecipient(recipient);
    }

    /// @inheritdoc IInferenceEscrow
    function setDailyCeiling(uint256 ceiling) external onlyRole(DEFAULT_ADMIN_ROLE) {
        _setDailyCeiling(ceiling);
    }

    /// @notice Begins to change how long the admin's place waits, within the bounds that the
    /// deployer has: neither at once, nor for ever.
    function changeDefaultAdminDelay(uint48 newDelay) public override {
        _checkAdminDelay(newDelay);
        super.changeDefaultAdminDelay(newDelay);
    }

    /// @notice Refused to the admin. Settlers and pausers may resign.
    /// @dev The library would let an admin leave in two steps as well.
    function renounceRole(bytes32 role, address account) public override {
        if (role == DEFAULT_ADMIN_ROLE) revert InferenceEscrow_AdminRequired();
        super.renounceRole(role, account);
    }

    // ---------------------------------------------------------- the pauser's

    /// @inheritdoc IInferenceEscrow
    function pause() external onlyRole(PAUSER_ROLE) {
        _pause();
    }

    /// @inheritdoc IInferenceEscrow
    function unpause() external onlyRole(PAUSER_ROLE) {
        _unpause();
    }

    // ---------------------------------------------------------------- views

    /// @inheritdoc IInferenceEscrow
    function dailyCeiling() external view returns (uint256) {
        return _activity.ceiling;
    }

    /// @inheritdoc IInferenceEscrow
    function leftToday() public view returns (uint256) {
        return Math.saturatingSub(_activity.ceiling, _movedToday());
    }

    /// @inheritdoc IInferenceEscrow
    function lastSettledAt() external view returns (uint256) {
        return _activity.lastSettledAt;
    }

    /// @inheritdoc IInferenceEscrow
    function dormant() public view returns (bool) {
        return block.timestamp >= _activity.lastSettledAt + DORMANCY;
    }

    /// @inheritdoc IInferenceEscrow
    function depositOf(address user) public view returns (uint256) {
        return _users[user].value & LIMIT;
    }

    /// @inheritdoc IInferenceEscrow
    function withdrawalOf(address user) external view returns (Pending memory) {
        return _withdrawals[user];
    }

    /// @inheritdoc IInferenceEscrow
    function capOf(address user) public view returns (uint256 maximum, uint256 debited) {
        maximum = _caps[user];
        debited = maximum - (_users[user].value >> SHIFT);
    }

    /// @inheritdoc IInferenceEscrow
    function capLoweringOf(address user) external view returns (Pending memory) {
        return _capLowerings[user];
    }

    /// @inheritdoc IInferenceEscrow
    function capDigest(address user, uint256 maximum, uint256 deadline, uint256 nonce)
        public
        view
        returns (bytes32)
    {
        return _hashTypedDataV4(keccak256(abi.encode(CAP, user, maximum, deadline, nonce)));
    }

    /// @inheritdoc IInferenceEscrow
    function creditOf(address account) public view returns (uint256) {
        return _accounts[account].value & LIMIT;
    }

    /// @inheritdoc IInferenceEscrow
    function earnedOf(address account) external view returns (uint256) {
        return _accounts[account].value >> SHIFT;
    }

    /// @inheritdoc IInferenceEscrow
    function batchSettled(bytes32 batchId) public view returns (bool) {
        return usageRootOf[batchId] != 0;
    }

    /// @inheritdoc IInferenceEscrow
    function verifyUsage(bytes32 batchId, Usage calldata line, bytes32[] calldata proof)
        external
        view
        returns (bool)
    {
        // A batch that was not settled has the root zero, to which no proof leads.
        bytes32 leaf = keccak256(bytes.concat(keccak256(abi.encode(line))));
        return MerkleProof.verifyCalldata(proof, usageRootOf[batchId], leaf);
    }

    /// @inheritdoc IInferenceEscrow
    function escrowOf(address user, bytes32 requestId) external view returns (Escrow memory) {
        return _escrows[escrowIdOf(user, requestId)];
    }

    /// @inheritdoc IInferenceEscrow
    function escrowIdOf(address user, bytes32 requestId) public view returns (bytes32) {
        return keccak256(abi.encode(block.chainid, address(this), user, requestId));
    }

    /// @inheritdoc IInferenceEscrow
    function totalDeposits() external view returns (uint256) {
        return _totals.deposits;
    }

    /// @inheritdoc IInferenceEscrow
    function totalCredits() external view returns (uint256) {
        return _totals.credits;
    }

    // ------------------------------------------------------- tokens and time

    /// @dev Takes exactly `amount` from the caller. Balances are compared, not counted on.
    function _pull(uint256 amount) private {
        if (amount == 0) revert InferenceEscrow_ZeroAmount();
        uint256 held = uint256(_totals.deposits) + _totals.credits + totalEscrowed;
        if (amount > LIMIT - held) revert InferenceEscrow_AmountTooLarge(amount);
        uint256 before = token.balanceOf(address(this));
        token.safeTransferFrom(msg.sender, address(this), amount);
        uint256 received = token.balanceOf(address(this)) - before;
        if (received != amount) revert InferenceEscrow_InexactTransfer(amount, received);
    }

    function _checkRecipient(address to) private view {
        if (to == address(0)) revert InferenceEscrow_ZeroAddress();
        if (to == address(this)) revert InferenceEscrow_RecipientIsEscrow();
    }

    function _pending(uint256 amount) private view returns (Pending memory) {
        return Pending(_narrow(amount), _timeAfter(WITHDRAWAL_DELAY));
    }

    /// @dev What was asked for, once it can be had.
    function _whenReady(Pending memory pending) private view returns (uint256) {
        if (pending.readyAt == 0) revert InferenceEscrow_NothingRequested(msg.sender);
        if (block.timestamp < pending.readyAt && !dormant()) {
            revert InferenceEscrow_TooEarly(pending.readyAt);
        }
        return pending.amount;
    }

    function _movedToday() private view returns (uint256) {
        return _activity.day == block.timestamp / 1 days ? _activity.movedThatDay : 0;
    }

    /// @dev Counts `amount` against the ceiling.
    function _countToday(uint256 amount) private {
        uint256 left = leftToday();
        if (amount > left) revert InferenceEscrow_DailyCeilingExceeded(left, amount);
        uint256 moved = _movedToday() + amount;
        _activity.day = uint24(block.timestamp / 1 days);
        _activity.movedThatDay = _narrow(moved);
    }

    // -------------------------------------------------------------- booking

    /// @dev The caller keeps the totals in step, as with all that follows here.
    function _debitAll(Line[] calldata debits) private returns (uint256 sum) {
        for (uint256 i = 0; i < debits.length; ++i) {
            (address user, uint256 amount) = _unpack(debits[i]);
            Word storage word = _users[user];
            uint256 value = word.value;
            uint256 left = value & LIMIT;
            if (amount > left) revert InferenceEscrow_InsufficientDeposit(user, left, amount);
            left = value >> SHIFT;
            if (amount > left) revert InferenceEscrow_CapExceeded(user, left, amount);
            unchecked {
                // Neither counter is below `amount`; and 96-bit amounts cannot sum to 2^256.
                word.value = value - amount * BOTH;
                sum += amount;
            }
        }
    }

    /// @dev A credit may run over here, and then the batch cannot balance: `settle` reverts.
    function _creditAll(Line[] calldata credits) private returns (uint256 sum) {
        for (uint256 i = 0; i < credits.length; ++i) {
            (address provider, uint256 amount) = _unpack(credits[i]);
            if (provider == address(0)) revert InferenceEscrow_ZeroAddress();
            _earn(provider, amount);
            unchecked {
                // 96-bit amounts cannot sum to 2^256.
                sum += amount;
            }
        }
    }

    function _unpack(Line line) private pure returns (address account, uint256 amount) {
        uint256 word = uint256(Line.unwrap(line));
        // forge-lint: disable-next-line(unsafe-typecast)
        return (address(uint160(word >> SHIFT)), word & LIMIT);
    }

    /// @dev Only for amounts that leave a deposit or an escrow in the same transaction: what all
    /// accounts hold together stays within `LIMIT`, so a credit cannot run into the earnings.
    function _earn(address account, uint256 amount) private {
        unchecked {
            _accounts[account].value += amount * BOTH;
        }
    }

    /// @dev A refund is the user's own money: it can be claimed, but it was not earned.
    function _refund(address user, uint256 amount) private {
        _accounts[user].value += amount;
    }

    function _closed(uint256 amount) private {
        totalEscrowed -= amount;
        _totals.credits += _narrow(amount);
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
        if (max - left > leftToday()) {
            return abi.encodeWithSelector(
                InferenceEscrow_DailyCeilingExceeded.selector, leftToday(), max - left
            );
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
        _refund(user, amount - paid);
        _closed(amount);
        _countToday(paid);
        emit EscrowReleased(escrowId, user, paid, amount - paid);
    }

    /// @dev Only for amounts that were held against something within `LIMIT`.
    function _narrow(uint256 amount) private pure returns (uint96) {
        // forge-lint: disable-next-line(unsafe-typecast)
        return uint96(amount);
    }

    /// @dev Seconds fit in 64 bits for the next half a trillion years.
    function _timeAfter(uint256 delay) private view returns (uint64) {
        // forge-lint: disable-next-line(unsafe-typecast)
        return uint64(block.timestamp + delay);
    }

    function _revertWith(bytes memory reason) private pure {
        assembly ("memory-safe") {
            revert(add(reason, 0x20), mload(reason))
        }
    }

    function _checkAdminDelay(uint48 delay) private pure {
        if (delay == 0 || delay > MAX_ADMIN_DELAY) revert InferenceEscrow_TermsInvalid();
    }

    function _setFeeRecipient(address recipient) private {
        _checkRecipient(recipient);
        emit FeeRecipientChanged(feeRecipient, recipient);
        feeRecipient = recipient;
    }

    function _setDailyCeiling(uint256 ceiling) private {
        if (ceiling > LIMIT) revert InferenceEscrow_AmountTooLarge(ceiling);
        emit DailyCeilingChanged(_activity.ceiling, ceiling);
        _activity.ceiling = _narrow(ceiling);
    }
}
