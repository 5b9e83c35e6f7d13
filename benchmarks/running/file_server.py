"""A web server that gives ranges of a folder's files, for `uvicorn --factory`."""

import os

from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

FOLDER = "FAR_BENCH_FILES"
"""Variable that names the folder."""


def create_app() -> Starlette:
    return Starlette(routes=[Mount("/", StaticFiles(directory=os.environ[FOLDER]))])
