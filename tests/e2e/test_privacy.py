"""No prompt, token or secret in any log line or in Postgres."""

from stack.development_stack import DevelopmentStack
from stack.plan import DATABASE
from tests.e2e.conftest import User

MARKED = "xylophone quokka"


def test_prompts_tokens_and_secrets_stay_out_of_logs_and_database(
    stack: DevelopmentStack, user: User
) -> None:
    running = user.submit(f"{MARKED} one", max_tokens=400, stop=["zeppelin"])
    dump_while_running = stack.postgres.dump(DATABASE)
    result = user.generate(f"{MARKED} two", max_tokens=48)
    cancelled = user.http.delete(f"/api/inference/jobs/{running}").raise_for_status().json()
    dump = stack.postgres.dump(DATABASE)
    logs = b"".join(child.log.read_bytes() for child in stack.processes.children.values())
    assert b"inference_completed" in logs
    assert result["request_id"].encode() in dump
    assert running.encode() in dump_while_running
    phrases = {MARKED, "xylophone", "quokka", "zeppelin"}
    for text in (result["text"], cancelled["text"]):
        phrases |= {text[start : start + 16] for start in range(0, len(text) - 16, 16)}
    secrets = {
        *stack.secret_values,
        user.http.headers["Authorization"].removeprefix("Bearer "),
        user.account.key.hex(),
        *(wallet.key.hex() for wallet in stack.wallets),
    }
    for phrase in phrases | secrets:
        for place, content in (("logs", logs), ("database", dump), ("dump", dump_while_running)):
            assert phrase.encode() not in content, f"{phrase!r} in the {place}"


def test_the_prompt_is_erased_from_postgres_when_its_job_ends(
    stack: DevelopmentStack, user: User
) -> None:
    request_id = user.generate(f"{MARKED} three", max_tokens=4)["request_id"]
    left = stack.postgres.rows(
        f"SELECT request_cipher IS NULL FROM inference_sessions WHERE request_id = '{request_id}'",
        database=DATABASE,
    )
    assert left == ["t"]
