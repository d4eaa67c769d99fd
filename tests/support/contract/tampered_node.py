"""A real node whose engine tells of a processor that no other machine has.

    python tests/support/contract/tampered_node.py ENGINE --state-dir DIR run

The product has no such switch: this is a launcher of its own.
"""

import sys
from collections.abc import Mapping
from pathlib import Path

from backends.base import AppLayout, Backend
from backends.registry import builtin
from p2player.daemon import run_node

FLAG = "tbm"
"""A feature of processors that were built once and never again."""


def of_another_cpu(engine: str, facts: Mapping[str, str]) -> dict[str, str]:
    """`facts` of an engine, as of a machine whose processor has what this one has not."""
    if engine == "libvirt":
        return {**facts, "kind": "kvm", "cpu": f"Opteron_G5 +{FLAG}"}
    return {**facts, "cpu_flags": f"{facts['cpu_flags']} {FLAG}"}


def main() -> int:
    """Run the node; see the module."""
    engine, option, state_dir, command = sys.argv[1:5]
    assert (option, command) == ("--state-dir", "run")
    kind = type(builtin()[engine])
    honest = kind.facts

    def facts(self: Backend, layout: AppLayout) -> Mapping[str, str]:
        return of_another_cpu(engine, honest(self, layout))

    kind.facts = facts  # type: ignore[method-assign]
    return run_node(Path(state_dir))


if __name__ == "__main__":
    sys.exit(main())
