"""Generate text and print it as it comes; a lost connection is resumed where it broke.

TOKEN=... .venv/bin/python docs/examples/stream.py "The for statement"
"""

import json
import os
import sys
import time
from typing import Any

import httpx

API = os.environ.get("API", "http://127.0.0.1:8000")


def main() -> None:
    prompt = sys.argv[1] if len(sys.argv) > 1 else "The for statement"
    headers = {"Authorization": f"Bearer {os.environ['TOKEN']}"}
    request = {"model_id": os.environ.get("MODEL", "far/pydoc-llama"), "prompt": prompt}
    with httpx.Client(base_url=API, headers=headers, timeout=60) as http:
        answer = http.post(
            "/api/inference/distributed/generate",
            json={**request, "max_tokens": 64},
            headers={"Prefer": "respond-async"},
        )
        if answer.is_error:
            raise SystemExit(answer.json()["detail"])
        done = follow(http, answer.json()["events_url"])
    if done["error"]:
        raise SystemExit(done["error"]["detail"])
    print(f"\n{done['total_tokens']} tokens for {done['cost_far_exact']} FAR", file=sys.stderr)


def follow(http: httpx.Client, url: str) -> dict[str, Any]:
    """Print each token once, whatever happens to the connection; returns the last event."""
    seen = ""
    while True:
        try:
            with http.stream("GET", url, headers={"Last-Event-ID": seen}) as answer:
                for line in answer.raise_for_status().iter_lines():
                    field, _, value = line.partition(": ")
                    if field == "id":
                        seen = value
                    elif field == "data":
                        event: dict[str, Any] = json.loads(value)
                        if event.get("done"):
                            return event
                        print(event.get("token", ""), end="", flush=True)
        except httpx.TransportError:
            pass
        time.sleep(1)


if __name__ == "__main__":
    main()
