"""The ledger's invariants, each as one query that finds its violations.

Every query gives rows of (subject, expected, found), and reads its tables once, however long they
are.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """One violation: what a check expected of a subject, and what it found.

    ``check`` names the invariant, or the comparison with the contract.
    """

    check: str
    subject: str
    expected: str
    found: str


TRANSACTIONS_SUM_TO_ZERO = """
SELECT 'transaction ' || transaction_id AS subject, 0 AS expected, sum(amount) AS found
FROM ledger_entries GROUP BY transaction_id HAVING sum(amount) <> 0
"""

BALANCES_EQUAL_ENTRIES = """
WITH entries AS (
    SELECT account_id, sum(amount) AS total FROM ledger_entries GROUP BY account_id
), balances AS (
    SELECT account_id, sum(balance) AS balance FROM ledger_parts GROUP BY account_id
)
SELECT coalesce(owner || ' ' || kind, 'account ' || account_id) AS subject,
    coalesce(total, 0) AS expected, coalesce(balance, 0) AS found
FROM entries FULL JOIN balances USING (account_id) LEFT JOIN ledger_accounts ON id = account_id
WHERE coalesce(total, 0) <> coalesce(balance, 0)
"""

NONE_BELOW_ZERO = """
SELECT owner || ' ' || kind AS subject, 'at least 0' AS expected, balance AS found
FROM ledger_parts JOIN ledger_accounts ON id = account_id
WHERE balance < 0 AND kind NOT IN ('clearing', 'shortfall')
"""

NO_SHORTFALL = """
SELECT owner || ' ' || kind AS subject, 0 AS expected, balance AS found
FROM ledger_balances WHERE kind = 'shortfall' AND balance <> 0
"""

CAPS_KEPT = """
SELECT wallet AS subject, 'at most ' || maximum AS expected, committed AS found
FROM spending_caps WHERE committed > maximum
"""

COMMITMENTS_EQUAL_SPENDING = """
WITH spending AS (
    SELECT owner AS wallet, sum(
        CASE WHEN ledger_transactions.kind = 'capture' THEN -amount ELSE 0 END
        + CASE WHEN ledger_accounts.kind = 'held' THEN amount ELSE 0 END
    ) AS spent
    FROM ledger_entries
    JOIN ledger_accounts ON ledger_accounts.id = account_id
    JOIN ledger_transactions ON ledger_transactions.id = transaction_id
    WHERE ledger_accounts.kind IN ('held', 'available')
    GROUP BY owner
)
SELECT wallet AS subject, coalesce(spent, 0) AS expected, coalesce(committed, 0) AS found
FROM spending FULL JOIN spending_caps USING (wallet)
WHERE coalesce(spent, 0) <> coalesce(committed, 0)
"""

HOLDS_END_WHOLE = """
SELECT reference AS subject,
    coalesce(sum(amount) FILTER (WHERE ledger_transactions.kind = 'hold'), 0) AS expected,
    -sum(amount) FILTER (WHERE ledger_transactions.kind <> 'hold') AS found
FROM ledger_transactions
JOIN ledger_entries ON transaction_id = ledger_transactions.id
JOIN ledger_accounts ON ledger_accounts.id = account_id
WHERE ledger_transactions.kind IN ('hold', 'capture', 'release') AND ledger_accounts.kind = 'held'
GROUP BY reference
HAVING sum(amount) <> 0 AND bool_or(ledger_transactions.kind <> 'hold')
"""

JOBS_ARE_POSTED = """
WITH postings AS (
    SELECT reference, string_agg(kind, ', ' ORDER BY kind) AS kinds FROM ledger_transactions
    WHERE kind IN ('hold', 'capture', 'release') GROUP BY reference
), jobs AS (
    SELECT request_id AS reference, CASE
        WHEN status = 'completed' OR status = 'failed' AND total_cost_far > 0 THEN 'capture, hold'
        WHEN status = 'failed' THEN 'hold, release' ELSE 'hold'
    END AS kinds FROM inference_sessions
)
SELECT reference AS subject, coalesce(jobs.kinds, 'nothing') AS expected,
    coalesce(postings.kinds, 'nothing') AS found
FROM jobs FULL JOIN postings USING (reference)
WHERE jobs.kinds IS DISTINCT FROM postings.kinds
"""

_CAPTURED = """
WITH captured AS (
    SELECT reference, owner, ledger_accounts.kind, amount FROM ledger_transactions
    JOIN ledger_entries ON transaction_id = ledger_transactions.id
    JOIN ledger_accounts ON ledger_accounts.id = account_id
    WHERE ledger_transactions.kind = 'capture'
)
"""

COSTS_ARE_CAPTURED = f"""
{_CAPTURED.strip()}, costs AS (
    SELECT reference,
        coalesce(-sum(amount) FILTER (WHERE kind IN ('held', 'available')), 0) AS cost,
        coalesce(sum(amount) FILTER (WHERE kind = 'owed' AND owner = 'platform'), 0) AS fee
    FROM captured GROUP BY reference
)
SELECT request_id AS subject,
    coalesce(total_cost_far, 0) || ', of it fee ' || coalesce(fee_far, 0) AS expected,
    coalesce(cost, 0) || ', of it fee ' || coalesce(fee, 0) AS found
FROM inference_sessions LEFT JOIN costs ON reference = request_id
WHERE status IN ('completed', 'failed') AND (
    coalesce(cost, 0) <> coalesce(total_cost_far, 0) OR coalesce(fee, 0) <> coalesce(fee_far, 0)
)
"""

SHARES_ARE_CAPTURED = f"""
{_CAPTURED.strip()}, shares AS (
    SELECT reference, owner, amount FROM captured WHERE kind = 'owed' AND owner <> 'platform'
), contributions AS (
    SELECT request_id AS reference, wallet_address AS owner, sum(payment_far) AS amount
    FROM node_contributions JOIN inference_sessions ON inference_sessions.id = session_id
    GROUP BY request_id, wallet_address HAVING sum(payment_far) <> 0
)
SELECT reference || ' ' || owner AS subject, coalesce(contributions.amount, 0) AS expected,
    coalesce(shares.amount, 0) AS found
FROM contributions FULL JOIN shares USING (reference, owner)
WHERE coalesce(contributions.amount, 0) <> coalesce(shares.amount, 0)
"""

KEYS_EQUAL_JOBS = """
WITH jobs AS (
    SELECT api_key_id AS key_id, CAST(started_at AT TIME ZONE 'UTC' AS date) AS day, sum(
        CASE WHEN status IN ('pending', 'active') THEN hold_far ELSE coalesce(total_cost_far, 0) END
    ) AS spent
    FROM inference_sessions WHERE api_key_id IS NOT NULL GROUP BY 1, 2
)
SELECT key_id || ' ' || day AS subject, coalesce(spent, 0) AS expected,
    coalesce(committed, 0) AS found
FROM jobs FULL JOIN key_spending USING (key_id, day)
WHERE coalesce(spent, 0) <> coalesce(committed, 0)
"""

INVARIANTS = {
    "transactions_sum_to_zero": TRANSACTIONS_SUM_TO_ZERO,
    "balances_equal_entries": BALANCES_EQUAL_ENTRIES,
    "none_below_zero": NONE_BELOW_ZERO,
    "no_shortfall": NO_SHORTFALL,
    "caps_kept": CAPS_KEPT,
    "commitments_equal_spending": COMMITMENTS_EQUAL_SPENDING,
    "holds_end_whole": HOLDS_END_WHOLE,
    "jobs_are_posted": JOBS_ARE_POSTED,
    "costs_are_captured": COSTS_ARE_CAPTURED,
    "shares_are_captured": SHARES_ARE_CAPTURED,
    "keys_equal_jobs": KEYS_EQUAL_JOBS,
}
