"""The engines' own live migrations, measured beside: LXD's and libvirt's, where they run."""

from bench.paper.ground import Ground
from bench.paper.published import Moved
from bench.paper.workloads import Watch, Workload
from bench.sync.measured import RunFailed


def run(ground: Ground, platform: str, workload: Workload, watch: Watch) -> Moved:
    """Migrate with the engine's own means.

    Raises:
        RunFailed: it has none, or it did not work.
    """
    raise RunFailed(f"{platform} has no live migration of its own")
