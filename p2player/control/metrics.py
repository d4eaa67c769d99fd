"""`/metrics`: the node in numbers, in Prometheus' text form.

The figures are read from the node at the moment of the scrape: nothing is counted twice, nothing is kept in globals.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.responses import Response

from p2player.control.endpoint import Call, Endpoint

if TYPE_CHECKING:
    from p2player.node import Node


class _NodeCollector(Collector):
    def __init__(self, node: "Node", store: dict[str, int]) -> None:
        self._node = node
        self._store = store

    def collect(self) -> Iterable[Metric]:
        node = self._node
        peers = GaugeMetricFamily("p2player_peers", "Other nodes of the mesh, by state", labels=["state"])
        for state, count in node.mesh.status()["peers"].items():
            peers.add_metric([state], count)
        yield peers
        stored = GaugeMetricFamily("p2player_store", "What the store holds", labels=["what"])
        for what, value in self._store.items():
            stored.add_metric([what], value)
        yield stored
        apps = GaugeMetricFamily("p2player_apps", "Apps of this node, by state", labels=["state"])
        for state, count in node.directory.states().items():
            apps.add_metric([state], count)
        yield apps
        migrations = GaugeMetricFamily("p2player_migrations", "Migrations remembered, by state", labels=["state"])
        for state, count in node.migrations.states().items():
            migrations.add_metric([state], count)
        yield migrations
        wire = CounterMetricFamily("p2player_peer_bytes", "Bytes to and from peers, TLS included", labels=["direction"])
        received, sent = node.pool.bytes()
        wire.add_metric(["in"], received)
        wire.add_metric(["out"], sent)
        yield wire


async def _metrics(call: Call) -> Response:
    stats = await call.node.upkeep.stats()
    numbers = {key: value for key, value in stats.items() if isinstance(value, int)}
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_NodeCollector(call.node, numbers))
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


ENDPOINTS = (Endpoint("GET", "/metrics", "The node in numbers, for Prometheus", _metrics, answers="Prometheus text"),)
