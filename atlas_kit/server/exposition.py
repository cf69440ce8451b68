"""The metrics as Prometheus reads them: this server's names, and llama-server's, so that its dashboards fit.

Each application has a registry of its own. A scrape looks at numbers that are there, and waits for nobody.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

from atlas_kit import __version__
from atlas_kit.server.metrics import COUNTERS, TIMES
from atlas_kit.server.overview import Now, now_of

if TYPE_CHECKING:
    from atlas_kit.server.service import Service

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
#: Seconds over which llama-server's throughputs are taken.
_RATE_SECONDS = 60


class Exposition:
    """What a scrape of a service gives."""

    def __init__(self, service: Service) -> None:
        self._service = service
        #: What was told last, and when; what is told while the model sleeps; since when throughputs are counted.
        self._told, self._told_at = b"", float("-inf")
        self._still: bytes | None = None
        self._since = float("-inf")
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def scraped(self) -> bytes:
        """Return all metrics; while the model sleeps, what was true before it did.

        The first who asks then is told the throughput of what was done last, and nobody after that, as by llama-server.
        """
        sleep = self._service.sleep
        if not sleep.sleeping:
            self._still, self._told, self._told_at = None, self.text(), time.monotonic()
            return self._told
        if self._still is not None:
            return self._still
        found = self._told if self._told_at > sleep.last else self.text()
        self._since = time.monotonic()
        self._still = self.text()
        return found

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry) + "".join(self._llama_server()).encode()

    def describe(self) -> list[Any]:
        """Nothing: the names are those of ``collect``."""
        return []

    def collect(self) -> Iterator[Any]:
        """Yield one family of samples after the other."""
        metrics = self._service.metrics
        metrics.refresh()
        info = GaugeMetricFamily("atlas_kit_info", "The version of the server.", labels=["version"])
        info.add_metric([__version__], 1)
        yield info
        yield GaugeMetricFamily(
            "ready", "Whether the model is loaded and requests are answered.", self._service.ready
        )
        yield GaugeMetricFamily(
            "process_start_time_seconds",
            "When the server was started, in Unix seconds.",
            self._service.started,
        )
        ended = CounterMetricFamily(
            "requests", "Requests that have ended, by what they asked for and why they ended.",
            labels=["task", "reason"],
        )  # fmt: skip
        for labels, count in metrics.ended.items():
            ended.add_metric(labels, count)
        yield ended
        for name, what in COUNTERS.items():
            yield CounterMetricFamily(name, what, metrics.totals[name])
        for name, (_, what) in TIMES.items():
            one = metrics.times[name]
            yield HistogramMetricFamily(name, what, one.cumulative(), one.sum)
        yield from self._now(now_of(self._service))
        yield from self._store()

    def _now(self, now: Now) -> Iterator[Any]:
        yield GaugeMetricFamily("num_requests_running", "Requests that are being answered.", now.running)
        yield GaugeMetricFamily("num_requests_waiting", "Requests that wait for their turn.", now.waiting)
        yield GaugeMetricFamily(
            "kv_cache_usage_ratio", "The part of all contexts that is filled, 0 to 1.", now.kv_cache_usage
        )
        sessions = GaugeMetricFamily(
            "sessions", "Sessions, by where they are: in a sequence of the model, in memory, in a file alone.",
            labels=["place"],
        )  # fmt: skip
        for place, count in now.sessions.items():
            sessions.add_metric([place], count)
        yield sessions
        yield CounterMetricFamily("saves", "How often the memory was saved.", now.saves)
        yield CounterMetricFamily(
            "save_failures", "How often the memory could not be saved.", now.save_failures
        )
        yield CounterMetricFamily("save_seconds", "Seconds that saving took.", now.save_seconds)
        if now.last_saved is not None:
            yield GaugeMetricFamily(
                "last_save_time_seconds", "When the memory was last saved, in Unix seconds.", now.last_saved
            )

    def _store(self) -> Iterator[Any]:
        """Yield what is known of the store, where memories are kept in one."""
        store = self._service.store or self._service.memory_store
        if store is None:
            return
        yield GaugeMetricFamily(
            "store_reachable", "Whether the store of memories answered last time.", store.problem is None
        )
        yield GaugeMetricFamily("store_waiting", "Saves that wait for the store.", len(store.waiting()))
        yield CounterMetricFamily("store_puts", "Saves that the store took.", store.puts)
        yield CounterMetricFamily("store_failures", "How often the store did not answer.", store.failures)
        yield CounterMetricFamily("leases_lost", "Sessions that other servers took over.", store.lost)

    def _llama_server(self) -> Iterator[str]:
        """Yield what llama-server calls by names of its own; one of its counters has no ``_total``."""
        metrics, now = self._service.metrics, now_of(self._service)
        seconds = int(min(_RATE_SECONDS, time.monotonic() - self._since))
        total, recent = metrics.totals, metrics.recent.over(seconds).sums
        steps = total["generated_tokens"] + total["read_tokens"] / max(1, now.batch)
        rows = (
            ("prompt_tokens_total", "counter", "Number of prompt tokens processed, excluding cached tokens",
             total["read_tokens"]),
            ("prompt_tokens_cached_total", "counter", "Number of prompt tokens reused from the cache",
             total["cached_tokens"]),
            ("prompt_seconds_total", "counter", "Total time spent processing prompts", total["reading_seconds"]),
            ("tokens_predicted_total", "counter", "Number of generation tokens processed",
             total["generated_tokens"]),
            ("tokens_predicted_seconds_total", "counter", "Total time spent generating tokens",
             total["generating_seconds"]),
            ("n_decode_total", "counter", "Total number of decodes", now.decodes),
            ("n_tokens_max", "counter", "Largest observed sequence length (prompt + generation)", metrics.longest),
            ("spec_decode_num_draft_tokens_total", "counter", "Draft tokens: none, nothing is drafted", 0),
            ("spec_decode_num_accepted_tokens_total", "counter", "Accepted draft tokens: none", 0),
            ("spec_decode_num_drafts_total", "counter", "Verified drafts: none", 0),
            ("prompt_tokens_seconds", "gauge", "Average prompt throughput in tokens/s over the last minute",
             _ratio(recent["ended read_tokens"], recent["reading_seconds"])),
            ("predicted_tokens_seconds", "gauge",
             "Average generation throughput of a request in tokens/s over the last minute",
             _ratio(recent["ended generated_tokens"], recent["generating_seconds"])),
            ("requests_processing", "gauge", "Number of requests processing", now.running),
            ("requests_deferred", "gauge", "Number of requests deferred", now.waiting),
            ("kv_cache_usage_ratio", "gauge", "KV-cache usage; 1 means 100 percent usage", now.kv_cache_usage),
            ("n_busy_slots_per_decode", "gauge", "Average number of busy slots per decode, about",
             steps / max(1, now.decodes)),
        )  # fmt: skip
        for name, kind, what, value in rows:
            yield f"# HELP llamacpp:{name} {what}\n# TYPE llamacpp:{name} {kind}\n"
            yield f"llamacpp:{name} {float(value):.12g}\n"


def _ratio(amount: float, seconds: float) -> float:
    return amount / seconds if seconds > 0 else 0.0
