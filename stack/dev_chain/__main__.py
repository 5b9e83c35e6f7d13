"""`python -m stack.dev_chain`: the development chain as a process."""

import argparse

from stack.dev_chain.server import serve


def main() -> None:
    parser = argparse.ArgumentParser(description="Development chain with a JSON-RPC port.")
    parser.add_argument("--port", type=int, default=8545)
    serve(parser.parse_args().port).serve_forever()


if __name__ == "__main__":
    main()
