"""The ledger's rules, kept by the database itself."""

from alembic import op

revision = "0002"
down_revision = "0001"

APPEND_ONLY = """
CREATE FUNCTION ledger_refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append-only: post a new transaction instead', TG_TABLE_NAME
        USING ERRCODE = 'restrict_violation';
END $$;
"""

BALANCE_FROM_ENTRIES = """
CREATE FUNCTION ledger_apply_entry() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE ledger_accounts SET balance = balance + NEW.amount WHERE id = NEW.account_id;
    RETURN NULL;
END $$;

CREATE TRIGGER ledger_entries_apply AFTER INSERT ON ledger_entries
    FOR EACH ROW EXECUTE FUNCTION ledger_apply_entry();

CREATE FUNCTION ledger_guard_balance() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    -- Depth 1: a direct statement. Depth 2: the trigger above.
    IF pg_trigger_depth() < 2 THEN
        RAISE EXCEPTION 'a balance changes only through ledger_entries'
            USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$;

CREATE TRIGGER ledger_accounts_guard BEFORE UPDATE ON ledger_accounts
    FOR EACH ROW EXECUTE FUNCTION ledger_guard_balance();

CREATE FUNCTION ledger_begin_at_zero() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.balance := 0;
    RETURN NEW;
END $$;

CREATE TRIGGER ledger_accounts_begin_at_zero BEFORE INSERT ON ledger_accounts
    FOR EACH ROW EXECUTE FUNCTION ledger_begin_at_zero();
"""

SUM_TO_ZERO = """
CREATE FUNCTION ledger_check_balanced() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    total NUMERIC;
BEGIN
    SELECT SUM(amount) INTO total FROM ledger_entries WHERE transaction_id = NEW.transaction_id;
    IF total <> 0 THEN
        RAISE EXCEPTION 'ledger transaction % sums to %, not to zero', NEW.transaction_id, total
            USING ERRCODE = 'check_violation';
    END IF;
    RETURN NULL;
END $$;

CREATE CONSTRAINT TRIGGER ledger_entries_balanced AFTER INSERT ON ledger_entries
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION ledger_check_balanced();
"""

TABLES = {
    "ledger_entries": "UPDATE OR DELETE OR TRUNCATE",
    "ledger_transactions": "UPDATE OR DELETE OR TRUNCATE",
    "ledger_accounts": "DELETE OR TRUNCATE",
}


def _execute(script: str) -> None:
    """asyncpg takes one statement at a time."""
    for statement in script.strip().split("\n\n"):
        op.execute(statement)


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute(APPEND_ONLY)
    for table, events in TABLES.items():
        op.execute(
            f"CREATE TRIGGER {table}_append_only BEFORE {events} ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION ledger_refuse_change()"
        )
    _execute(BALANCE_FROM_ENTRIES)
    _execute(SUM_TO_ZERO)
