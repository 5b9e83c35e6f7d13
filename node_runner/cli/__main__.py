"""`python -m node_runner.cli`."""

from node_runner.cli import app

if __name__ == "__main__":
    app(prog_name="far-node")
