"""Postings in one call, balances in parts, spending caps, reversals and dated entries."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

AMOUNT = sa.Numeric(precision=38, scale=18)

DROP_OLD_RULES = """
DROP TRIGGER ledger_accounts_append_only ON ledger_accounts;

DROP FUNCTION ledger_check_balanced() CASCADE;

DROP FUNCTION ledger_begin_at_zero() CASCADE;

DROP FUNCTION ledger_guard_balance() CASCADE;

DROP FUNCTION ledger_apply_entry() CASCADE;
"""

# Everybody's captures credit these few accounts. In one row each they would wait for each other's
# commit, so a balance has as many rows as this, and a connection adds to its own.
PARTS = """
CREATE FUNCTION ledger_parts_of(kind TEXT) RETURNS INTEGER LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN kind IN ('owed', 'clearing') THEN 16 ELSE 1 END
$$;

CREATE FUNCTION ledger_open_account() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    INSERT INTO ledger_parts (account_id, part, may_be_negative)
    SELECT NEW.id, part, NEW.kind IN ('clearing', 'shortfall')
    FROM generate_series(0, ledger_parts_of(NEW.kind) - 1) AS part;
    RETURN NULL;
END $$;
"""

MOVE_BALANCES = """
INSERT INTO ledger_parts (account_id, part, may_be_negative, balance)
SELECT id, part, kind IN ('clearing', 'shortfall'), CASE part WHEN 0 THEN balance ELSE 0 END
FROM ledger_accounts, generate_series(0, ledger_parts_of(kind) - 1) AS part;

ALTER TABLE ledger_accounts DROP COLUMN balance;

CREATE VIEW ledger_balances AS
SELECT owner, kind, sum(balance) AS balance
FROM ledger_accounts JOIN ledger_parts ON account_id = id GROUP BY id;

CREATE TRIGGER ledger_accounts_open AFTER INSERT ON ledger_accounts
    FOR EACH ROW EXECUTE FUNCTION ledger_open_account();

CREATE TRIGGER ledger_accounts_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON ledger_accounts
    FOR EACH STATEMENT EXECUTE FUNCTION ledger_refuse_change();
"""

# Depth 0: a direct statement. Depth 1: from one of the two triggers that keep balances, or from a
# trigger that somebody has put on a table of his own: row security tells these apart, since the two
# run as the tables' owner, whom it does not concern.
GUARD_PARTS = """
CREATE FUNCTION ledger_refuse_direct() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'a balance changes only through ledger_entries'
        USING ERRCODE = 'restrict_violation';
END $$;

CREATE TRIGGER ledger_parts_guard BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON ledger_parts
    FOR EACH STATEMENT WHEN (pg_trigger_depth() < 1) EXECUTE FUNCTION ledger_refuse_direct();

CREATE TRIGGER ledger_parts_never_empty BEFORE TRUNCATE ON ledger_parts
    FOR EACH STATEMENT EXECUTE FUNCTION ledger_refuse_direct();

ALTER TABLE ledger_parts ENABLE ROW LEVEL SECURITY;

CREATE POLICY ledger_parts_are_read ON ledger_parts FOR SELECT USING (true);
"""

DATE_ENTRIES = """
ALTER TABLE ledger_entries DISABLE TRIGGER ledger_entries_append_only;

UPDATE ledger_entries SET posted_at = created_at
FROM ledger_transactions WHERE ledger_transactions.id = transaction_id;

ALTER TABLE ledger_entries ENABLE TRIGGER ledger_entries_append_only;
"""

# A whole statement at a time, and at once: nothing is deferred, so nothing can be set aside by
# SET CONSTRAINTS. Entries belong to a ledger transaction of their own database transaction: an old
# one takes no more.
APPLY_ENTRIES = """
CREATE FUNCTION ledger_apply_entries() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    entry RECORD;
    source RECORD;
    account_kind TEXT;
    missing NUMERIC;
BEGIN
    FOR entry IN SELECT transaction_id, sum(amount) AS total,
            min(posted_at) >= now() AND max(posted_at) <= clock_timestamp()
                AND min(posted_at) = max(posted_at) AS dated
        FROM added GROUP BY transaction_id
    LOOP
        IF entry.total <> 0 THEN
            RAISE EXCEPTION 'ledger transaction % sums to %, not to zero',
                entry.transaction_id, entry.total USING ERRCODE = 'check_violation';
        ELSIF NOT entry.dated THEN
            RAISE EXCEPTION 'entries are dated by the database' USING ERRCODE = 'check_violation';
        END IF;
        PERFORM FROM ledger_transactions
        WHERE id = entry.transaction_id AND created_at = now();
        IF NOT FOUND THEN
            RAISE EXCEPTION 'there is no ledger transaction % that was begun just now',
                entry.transaction_id
                USING ERRCODE = 'foreign_key_violation';
        END IF;
    END LOOP;
    -- In the order of account ids: balances are locked one by one, and two transactions that lock
    -- them in different orders would wait for each other.
    FOR entry IN SELECT account_id, sum(amount) AS amount FROM added
        GROUP BY account_id ORDER BY account_id
    LOOP
        SELECT kind INTO account_kind FROM ledger_accounts WHERE id = entry.account_id;
        IF account_kind IS NULL THEN
            RAISE EXCEPTION 'there is no ledger account %', entry.account_id
                USING ERRCODE = 'foreign_key_violation';
        END IF;
        missing := 0;
        IF account_kind = 'owed' AND entry.amount < 0 THEN
            -- Each part gives what it has, so that none goes below zero.
            missing := -entry.amount;
            FOR source IN SELECT part, balance FROM ledger_parts
                WHERE account_id = entry.account_id ORDER BY part FOR NO KEY UPDATE
            LOOP
                EXIT WHEN missing = 0;
                UPDATE ledger_parts SET balance = balance - least(missing, source.balance)
                WHERE account_id = entry.account_id AND part = source.part;
                missing := missing - least(missing, source.balance);
            END LOOP;
            CONTINUE WHEN missing = 0;
            entry.amount := -missing;
        END IF;
        UPDATE ledger_parts SET balance = balance + entry.amount
        WHERE account_id = entry.account_id
            AND part = pg_backend_pid() % ledger_parts_of(account_kind);
    END LOOP;
    RETURN NULL;
END $$;

CREATE TRIGGER ledger_entries_apply AFTER INSERT ON ledger_entries
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION ledger_apply_entries();
"""

# What the chain has taken back may come again, under the same reference.
OCCURRENCES = """
CREATE FUNCTION ledger_check_occurrence() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.kind = 'reverse' THEN
        IF NOT EXISTS (
            SELECT FROM ledger_transactions
            WHERE kind = split_part(NEW.reference, ':', 1)
                AND reference = substr(NEW.reference, strpos(NEW.reference, ':') + 1)
                AND occurrence = NEW.occurrence
        ) THEN
            RAISE EXCEPTION 'nothing to reverse: %', NEW.reference
                USING ERRCODE = 'restrict_violation';
        END IF;
    ELSIF NOT EXISTS (
        SELECT FROM ledger_transactions
        WHERE kind = 'reverse' AND reference = NEW.kind || ':' || NEW.reference
            AND occurrence = NEW.occurrence - 1
    ) THEN
        RAISE EXCEPTION '% % was posted and not reversed', NEW.kind, NEW.reference
            USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$;

CREATE TRIGGER ledger_transactions_occurrence BEFORE INSERT ON ledger_transactions
    FOR EACH ROW WHEN (NEW.occurrence <> 0 OR NEW.kind = 'reverse')
    EXECUTE FUNCTION ledger_check_occurrence();
"""

# One call, one round trip. With a wallet, its row of spending_caps is locked before any balance:
# whatever moves one wallet's money happens in one order. Entries are dated after that, so that the
# dates have the same order, however long ago the database transactions began.
POST = """
CREATE FUNCTION ledger_post(
    p_kind TEXT, p_reference TEXT, p_owners TEXT[], p_kinds TEXT[], p_amounts NUMERIC[],
    p_wallet TEXT, p_committed NUMERIC, p_occurrence INTEGER
) RETURNS BOOLEAN LANGUAGE plpgsql AS $$
DECLARE
    posted BIGINT;
    ids BIGINT[];
    account BIGINT;
    asked NUMERIC;
    dated TIMESTAMPTZ;
    within_cap BOOLEAN := TRUE;
BEGIN
    INSERT INTO ledger_transactions (kind, reference, occurrence)
    VALUES (p_kind, p_reference, p_occurrence)
    ON CONFLICT DO NOTHING RETURNING id INTO posted;
    IF posted IS NULL AND p_kind <> 'reverse' THEN
        INSERT INTO ledger_transactions (kind, reference, occurrence)
        SELECT p_kind, p_reference, max(earlier.occurrence) + 1 FROM ledger_transactions earlier
        WHERE earlier.kind = p_kind AND earlier.reference = p_reference
        HAVING EXISTS (
            SELECT FROM ledger_transactions WHERE kind = 'reverse'
                AND reference = p_kind || ':' || p_reference
                AND occurrence = max(earlier.occurrence)
        )
        ON CONFLICT DO NOTHING RETURNING id INTO posted;
    END IF;
    IF posted IS NULL THEN
        IF NOT EXISTS (
            SELECT FROM ledger_transactions WHERE kind = p_kind AND reference = p_reference
        ) THEN
            RAISE EXCEPTION 'uq_ledger_transactions_end: % cannot end by %, it has ended',
                p_reference, p_kind USING ERRCODE = 'unique_violation';
        END IF;
        RETURN FALSE;
    END IF;
    IF p_committed <> 0 THEN
        UPDATE spending_caps SET committed = committed + p_committed
        WHERE wallet = p_wallet AND (p_committed < 0 OR committed + p_committed <= signed)
        RETURNING withdrawal INTO asked;
        within_cap := FOUND;
    ELSIF p_wallet IS NOT NULL THEN
        PERFORM FROM spending_caps WHERE wallet = p_wallet FOR NO KEY UPDATE;
    END IF;
    FOR i IN 1 .. cardinality(p_owners) LOOP
        SELECT id INTO account FROM ledger_accounts
        WHERE owner = p_owners[i] AND kind = p_kinds[i];
        WHILE account IS NULL LOOP
            INSERT INTO ledger_accounts (owner, kind) VALUES (p_owners[i], p_kinds[i])
            ON CONFLICT (owner, kind) DO NOTHING RETURNING id INTO account;
            IF account IS NULL THEN -- somebody else has just made it
                SELECT id INTO account FROM ledger_accounts
                WHERE owner = p_owners[i] AND kind = p_kinds[i];
            END IF;
        END LOOP;
        ids[i] := account;
    END LOOP;
    dated := clock_timestamp();
    INSERT INTO ledger_entries (transaction_id, account_id, amount, posted_at)
    SELECT posted, entry.account_id, entry.amount, dated
    FROM unnest(ids, p_amounts) AS entry(account_id, amount);
    IF NOT within_cap THEN
        RAISE EXCEPTION 'check_within_spending_cap: more than % has signed for', p_wallet
            USING ERRCODE = 'check_violation';
    END IF;
    IF p_committed > 0 AND asked > 0 AND asked > (
        SELECT sum(balance) FROM ledger_balances
        WHERE owner = p_wallet AND kind IN ('available', 'withdrawing')
    ) THEN
        RAISE EXCEPTION 'check_balance_not_negative: % asked to be paid it out', p_wallet
            USING ERRCODE = 'check_violation';
    END IF;
    RETURN TRUE;
END $$;
"""

# Wallets that have spent before there were caps: as much as they have, and no more.
CAPS_SO_FAR = """
INSERT INTO spending_caps (wallet, signed, maximum, committed)
SELECT owner, sum(spent), sum(spent), sum(spent) FROM (
    SELECT owner, -amount AS spent FROM ledger_entries
    JOIN ledger_transactions ON ledger_transactions.id = transaction_id
    JOIN ledger_accounts ON ledger_accounts.id = account_id
    WHERE ledger_transactions.kind = 'capture'
        AND ledger_accounts.kind IN ('held', 'available')
    UNION ALL
    SELECT owner, balance FROM ledger_balances WHERE kind = 'held'
) AS movements GROUP BY owner HAVING sum(spent) > 0;
"""


def _execute(script: str) -> None:
    """asyncpg takes one statement at a time."""
    for statement in script.strip().split("\n\n"):
        op.execute(statement)


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    _execute(DROP_OLD_RULES)
    op.create_table(
        "ledger_parts",
        sa.Column("account_id", sa.BigInteger(), nullable=False),
        sa.Column("part", sa.SmallInteger(), nullable=False),
        sa.Column("balance", AMOUNT, server_default="0", nullable=False),
        sa.Column("may_be_negative", sa.Boolean(), nullable=False),
        sa.CheckConstraint(
            "balance >= 0 OR may_be_negative", name=op.f("check_balance_not_negative")
        ),
        sa.ForeignKeyConstraint(
            ["account_id"], ["ledger_accounts.id"], name=op.f("fk_ledger_parts_account_id")
        ),
        sa.PrimaryKeyConstraint("account_id", "part", name=op.f("pk_ledger_parts")),
        # Room on each page for the next version of a row: it is then written where the last was.
        postgresql_with={"fillfactor": "50"},
    )
    op.create_table(
        "spending_caps",
        sa.Column("wallet", sa.String(length=42), nullable=False),
        sa.Column("signed", AMOUNT, server_default="0", nullable=False),
        sa.Column("maximum", AMOUNT, server_default="0", nullable=False),
        sa.Column("committed", AMOUNT, server_default="0", nullable=False),
        sa.Column("withdrawal", AMOUNT, server_default="0", nullable=False),
        sa.CheckConstraint(
            "0 <= committed AND committed <= maximum AND signed <= maximum",
            name=op.f("check_within_spending_cap"),
        ),
        sa.PrimaryKeyConstraint("wallet", name=op.f("pk_spending_caps")),
        postgresql_with={"fillfactor": "50"},
    )
    _execute(PARTS)
    _execute(MOVE_BALANCES)
    _execute(GUARD_PARTS)
    _dated_entries()
    _execute(APPLY_ENTRIES)
    op.add_column(
        "ledger_transactions",
        sa.Column("occurrence", sa.SmallInteger(), server_default="0", nullable=False),
    )
    op.drop_constraint("uq_ledger_transactions_ref", "ledger_transactions")
    op.create_unique_constraint(
        "uq_ledger_transactions_ref", "ledger_transactions", ["kind", "reference", "occurrence"]
    )
    op.create_index(
        "uq_ledger_transactions_end",
        "ledger_transactions",
        ["reference"],
        unique=True,
        postgresql_where=sa.text("kind IN ('capture', 'release')"),
    )
    _execute(OCCURRENCES)
    _execute(POST)
    _execute(CAPS_SO_FAR)


def _dated_entries() -> None:
    op.add_column(
        "ledger_entries",
        sa.Column(
            "posted_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
    )
    _execute(DATE_ENTRIES)
    op.drop_column("ledger_entries", "id")
    op.create_primary_key("pk_ledger_entries", "ledger_entries", ["transaction_id", "account_id"])
    op.drop_index("idx_ledger_entries_transaction", "ledger_entries")
    op.drop_index("idx_ledger_entries_account", "ledger_entries")
    # Every entry would lock the rows that it refers to, and all captures share the platform's
    # account. Neither is ever deleted, and the trigger looks whether they are there.
    op.drop_constraint("fk_ledger_entries_account_id", "ledger_entries")
    op.drop_constraint("fk_ledger_entries_transaction_id", "ledger_entries")
    op.create_index(
        "idx_ledger_entries_account",
        "ledger_entries",
        ["account_id", "posted_at"],
        postgresql_include=["amount"],
    )
