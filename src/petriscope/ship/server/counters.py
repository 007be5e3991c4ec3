"""What the server counts, in Prometheus' format."""

from __future__ import annotations

from functools import cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from petriscope.core.shift_results import ShiftTest
from petriscope.ship.server.served import Found

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Counters:
    """All counters of one server.

    The share of images that are out of distribution, over the last hour, is
    ``rate(petriscope_out_of_distribution_total[1h]) / rate(petriscope_images_total[1h])``.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.one = cache(
            lambda metric, *labels: metric.labels(*labels)
        )  # looking them up each time takes as long as counting
        model = ["model"]

        def counter(name: str, about: str, labels: list[str]) -> Counter:
            return Counter(f"petriscope_{name}", about, labels, registry=self.registry)

        def gauge(name: str, about: str) -> Gauge:
            return Gauge(f"petriscope_{name}", about, model, registry=self.registry)

        def histogram(name: str, about: str, labels: list[str], buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"petriscope_{name}", about, labels, registry=self.registry, buckets=buckets)

        self.requests = counter("requests", "Requests by path and status.", ["path", "status"])
        self.seconds = histogram("request_seconds", "Time from request to answer.", ["path"], SECONDS)
        self.batches = histogram("batch_size", "Images that were predicted at a time.", model, SIZES)
        self.queue = gauge("queue_length", "Images that were accepted and are not answered yet.")
        self.images = counter("images", "Images by result: answered, abstained or unreadable.", ["model", "result"])
        self.dropped = counter(
            "images_dropped", "Images that were accepted and not answered: client left, or deadline.", ["model", "why"]
        )
        self.far = counter("out_of_distribution", "Images that are out of distribution.", model)
        self.p = gauge("comparison_p", "p-value of the last comparison of the last images with val.")
        self.withdrawn = gauge("guarantees_withdrawn", "1 where the last images are not like those of val.")

    def request(self, path: str, status: int, seconds: float) -> None:
        self.one(self.requests, path, status).inc()
        self.one(self.seconds, path).observe(seconds)

    def batch(self, model: str, size: int) -> None:
        self.one(self.batches, model).observe(size)

    def image(self, model: str, found: Found) -> None:
        result = "unreadable" if found.row.error is not None else "abstained" if found.abstained else "answered"
        self.one(self.images, model, result).inc()
        if found.far:
            self.one(self.far, model).inc()

    def drop(self, model: str, count: int, why: str) -> None:
        self.one(self.dropped, model, why).inc(count)

    def compared(self, model: str, test: ShiftTest) -> None:
        self.p.labels(model).set(float("nan") if test.p is None else test.p)
        self.withdrawn.labels(model).set(float(test.withdrawn))

    def text(self) -> bytes:
        """The answer to a scrape."""
        return generate_latest(self.registry)
