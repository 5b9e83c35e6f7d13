"""Plans of the stack to measure, on free ports."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import psutil

from benchmarks.checkpoints.models import BenchModel
from stack.development_stack import DevelopmentStack
from stack.plan import Plan
from stack.servers import free_port

SETTINGS = {
    "FAR_LIMITS__REQUESTS_PER_IP": "100000000/hour",
    "FAR_LIMITS__GENERATIONS_PER_WALLET": "1000000/hour",
    "FAR_LIMITS__JOBS_IN_FLIGHT_PER_WALLET": "1000000",
    "FAR_GENERATION__JOBS_PER_ROUTE": "1000",
}
"""Limits that let one user send more than the defaults allow; all else is the default."""


def plan(
    model: BenchModel,
    folder: Path,
    *,
    nodes: int,
    node_options: tuple[str, ...] = (),
    settings: Mapping[str, str] = MappingProxyType({}),
) -> Plan:
    """A stack whose nodes have equal spans. ``folder`` is for the stack's data; ``settings`` come
    on top."""
    return Plan(
        folder=folder,
        api_port=free_port(),
        redis_port=free_port(),
        chain_port=free_port(),
        model=str(model.folder),
        model_id=f"bench/{model.name}",
        nodes=nodes,
        node_options=node_options,
        environment={**SETTINGS, **settings},
    )


def postmaster(stack: DevelopmentStack) -> psutil.Process:
    """The main process of Postgres, which is no child of this one."""
    pid_file = (stack.postgres.folder / "postmaster.pid").read_text()
    return psutil.Process(int(pid_file.split()[0]))
