"""The metrics for prometheus_client: a collector for a program's own registry, and Prometheus' text.

The library knows the exposition formats, content negotiation and HTTP; here is only what turns rows into its families::

    from prometheus_client import REGISTRY, start_http_server

    REGISTRY.register(lamella.metrics.Collector(client))
    start_http_server(9100)

Importing this module loads prometheus_client (some 60 ms); only a scrape does.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector as _Collector

from lamella.metrics.scrape import Metric, read, rows

if TYPE_CHECKING:
    from lamella.client import Client


class Collector(_Collector):
    """Gives a registry the metrics of a client's store, of all processes and namespaces, read at each scrape.

    The client may be closed by then, and the process forked. One registry takes one store: the names would be there twice.
    """

    def __init__(self, client: Client) -> None:
        self._config = client.config

    def describe(self) -> Iterator[Family]:
        """Give the families without samples, so that a registry can tell whether a name is taken."""
        return map(_family, rows())

    def collect(self) -> Iterator[Family]:
        """Read everything. Errors are those of opening the store."""
        return map(_family, read(self._config))


def exposition(client: Client) -> str:
    """Give the metrics of a client's store as Prometheus' text format, version 0.0.4."""
    registry = CollectorRegistry()
    registry.register(Collector(client))
    return generate_latest(registry).decode()


def _family(metric: Metric) -> Family:
    if metric.type == "histogram":
        histogram = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
        for sample in metric.samples:
            assert sample.count is not None and sample.sum is not None
            buckets = [(repr(bucket.le), float(bucket.count)) for bucket in sample.buckets]
            buckets.append(("+Inf", float(sample.count)))
            histogram.add_metric(list(sample.labels.values()), buckets, sum_value=sample.sum)
        return histogram
    kind = CounterMetricFamily if metric.type == "counter" else GaugeMetricFamily
    family = kind(metric.name, metric.help, labels=metric.labels)
    for sample in metric.samples:
        assert sample.value is not None
        family.add_metric(list(sample.labels.values()), sample.value)
    return family
