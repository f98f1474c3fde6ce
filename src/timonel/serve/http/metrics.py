"""What a server counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily

from ..engine import Engine


class Metrics:
    """The numbers of one server.

    Args:
        engines: by the names of their models.
    """

    def __init__(self, engines: Mapping[str, Engine]) -> None:
        self.engines = engines
        self.registry = CollectorRegistry()
        self.answers = Counter(
            "timonel_answers", "Answers by method, path and status.", ["method", "path", "status"],
            registry=self.registry,
        )  # fmt: skip
        self.seconds = Histogram(
            "timonel_answer_seconds", "From a request to the end of its answer.", ["path"],
            registry=self.registry,
        )  # fmt: skip
        self.rejected = Counter(
            "timonel_rejected", "Requests that were refused because too many wait.",
            registry=self.registry,
        )  # fmt: skip
        self.registry.register(self)

    def answered(self, method: str, path: str, status: int, seconds: float) -> None:
        """Count an answer. Paths are counted without the names of runs."""
        parts = ["{run}" if len(part) == 24 else part for part in path.split("/")]
        plain = "/".join(parts[:4]) if status != 404 else "unknown"
        self.answers.labels(method, plain, str(status)).inc()
        self.seconds.labels(plain).observe(seconds)
        if status == 429:
            self.rejected.inc()

    def collect(self) -> Iterable[Any]:
        """The state of the engines now."""
        gauges = {
            "timonel_waiting": "Runs that wait.",
            "timonel_active": "Runs that take part.",
            "timonel_held_bytes": "Bytes of the tensors of runs that take part.",
            "timonel_network_calls": "Network calls so far.",
            "timonel_rows": "Rows of runs that these have served.",
            "timonel_network_seconds": "Seconds of network calls.",
        }
        families = {name: GaugeMetricFamily(name, text, labels=["model"]) for name, text in
                    gauges.items()}  # fmt: skip
        for model, engine in self.engines.items():
            for name, value in zip(families, engine.numbers(), strict=True):
                families[name].add_metric([model], value)
        return families.values()

    def text(self) -> bytes:
        """Everything in Prometheus' format."""
        return generate_latest(self.registry)
