"""The daemon's status and stats as Prometheus text (exposition format 0.0.4).

Each metric is explained in docs/metrics.md. Pure: documents in, text out. What a document lacks is
left out, so that an older or newer daemon does not break a scrape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Document = Mapping[str, Any]
Labels = tuple[tuple[str, str], ...]
Sample = tuple[Labels, Any]
"""Labels and a value; a value that is no number is left out."""

Source = Callable[[Document, Document], Iterable[Sample]]
"""Takes status and stats."""

NS = 1e9


@dataclass(frozen=True)
class Metric:
    """One metric family."""

    name: str
    kind: str
    help: str
    samples: Source


def render(status: Document, stats: Document) -> str:
    """The whole page."""
    return "".join(line + "\n" for metric in METRICS for line in _family(metric, status, stats))


def _family(metric: Metric, status: Document, stats: Document) -> Iterator[str]:
    """HELP, TYPE and the samples; nothing where there is no sample."""
    samples = [s for s in metric.samples(status, stats) if isinstance(s[1], int | float)]
    if not samples:
        return
    yield f"# HELP {metric.name} {metric.help}"
    yield f"# TYPE {metric.name} {metric.kind}"
    for labels, value in samples:
        yield f"{metric.name}{_labels(labels)} {_number(value)}"


def _labels(labels: Labels) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{escape(value)}"' for name, value in labels) + "}"


def escape(value: str) -> str:
    """A label's value as the format wants it; bytes that were no UTF-8 become `?`."""
    text = value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    return text.encode(errors="replace").decode()


def _number(value: float) -> str:
    return str(int(value)) if isinstance(value, bool) else repr(value)


# Where samples come from


def _table(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _at(document: Document, *path: str) -> Any:
    """The value at `path`, or None."""
    value: Any = document
    for key in path:
        value = _table(value).get(key)
    return value


def _status(*path: str) -> Source:
    return lambda status, stats: [((), _at(status, *path))]


def _stats(*path: str) -> Source:
    return lambda status, stats: [((), _at(stats, *path))]


def _requests(key: str, divisor: float | None = None) -> Source:
    """`key` of each opcode in stats."""

    def samples(status: Document, stats: Document) -> Iterator[Sample]:
        for opcode, counts in _table(stats.get("requests")).items():
            value = _at(_table(counts), key)
            if isinstance(value, int | float):
                yield (("op", opcode),), value / divisor if divisor else value

    return samples


def _open_files(status: Document, stats: Document) -> Iterator[Sample]:
    for engine, figures in _table(status.get("engines")).items():
        yield (("engine", engine),), _at(_table(figures), "open_files")


def _features(status: Document, stats: Document) -> Iterator[Sample]:
    for feature, granted in _table(status.get("features")).items():
        yield (("feature", feature),), bool(granted)


def _degradations(status: Document, stats: Document) -> Iterator[Sample]:
    entries = status.get("degradations")
    for entry in entries if isinstance(entries, list) else []:
        labels = tuple((key, str(_at(_table(entry), key))) for key in ("what", "reason"))
        yield labels, 1


def _ledger(key: str) -> Source:
    """`key` of each engine and direction in stats."""

    def samples(status: Document, stats: Document) -> Iterator[Sample]:
        for engine, directions in _table(stats.get("ledger")).items():
            for direction, counts in _table(directions).items():
                labels = (("engine", engine), ("direction", direction))
                yield labels, _at(_table(counts), key)

    return samples


def _copied(status: Document, stats: Document) -> Iterator[Sample]:
    for by in ("user", "kernel"):
        for labels, value in _ledger(f"bytes_copied_{by}")(status, stats):
            yield (*labels, ("by", by)), value


INFO = ("version", "source", "mountpoint", "device", "protocol", "engine", "transport", "locks")


def _info(status: Document, stats: Document) -> Iterator[Sample]:
    yield tuple((key, str(status[key])) for key in INFO if key in status), 1


METRICS = (
    Metric("zcfs_info", "gauge", "What is mounted, and how; always 1.", _info),
    Metric(
        "zcfs_uptime_seconds", "gauge", "Seconds since the mount was made.", _status("uptime_s")
    ),
    Metric(
        "zcfs_requests_total", "counter", "FUSE requests answered, by opcode.", _requests("count")
    ),
    Metric(
        "zcfs_request_errors_total",
        "counter",
        "FUSE requests answered with an error, by opcode.",
        _requests("errors"),
    ),
    Metric(
        "zcfs_request_seconds_total",
        "counter",
        "Seconds from taking a request to its answer, summed, by opcode.",
        _requests("ns", NS),
    ),
    Metric(
        "zcfs_read_bytes_total",
        "counter",
        "Bytes that the daemon read for applications; passthrough is not seen.",
        _stats("bytes_read"),
    ),
    Metric(
        "zcfs_written_bytes_total",
        "counter",
        "Bytes that the daemon wrote for applications; passthrough is not seen.",
        _stats("bytes_written"),
    ),
    Metric(
        "zcfs_data_requests_total",
        "counter",
        "READ and WRITE requests, by engine.",
        _ledger("requests"),
    ),
    Metric(
        "zcfs_delivered_bytes_total",
        "counter",
        "Bytes of files that the daemon delivered.",
        _ledger("bytes_delivered"),
    ),
    Metric(
        "zcfs_copied_bytes_total",
        "counter",
        "Bytes copied for that, by the daemon's code or in its system calls.",
        _copied,
    ),
    Metric(
        "zcfs_moved_bytes_total",
        "counter",
        "Bytes passed on as references to pages.",
        _ledger("bytes_moved"),
    ),
    Metric(
        "zcfs_passthrough_bytes_total",
        "counter",
        "Sizes of files at their opens in passthrough.",
        _ledger("bytes_passthrough"),
    ),
    Metric(
        "zcfs_data_syscalls_total",
        "counter",
        "System calls of the daemon for READ and WRITE requests.",
        _ledger("syscalls"),
    ),
    Metric("zcfs_pool_hits_total", "counter", "Pages found in the pool.", _stats("pool", "hits")),
    Metric(
        "zcfs_pool_misses_total",
        "counter",
        "Pages read because they were asked for.",
        _stats("pool", "misses"),
    ),
    Metric(
        "zcfs_pool_readahead_total",
        "counter",
        "Pages read before they were asked for.",
        _stats("pool", "readahead"),
    ),
    Metric(
        "zcfs_pool_evictions_total",
        "counter",
        "Pages that gave way to others.",
        _stats("pool", "evictions"),
    ),
    Metric(
        "zcfs_pool_syscalls_total",
        "counter",
        "System calls of the pool.",
        _stats("pool", "syscalls"),
    ),
    Metric(
        "zcfs_pool_borrowed_bytes",
        "gauge",
        "Bytes of frames that are borrowed or pinned.",
        _stats("pool", "borrowed"),
    ),
    Metric(
        "zcfs_relay_requests_total",
        "counter",
        "Requests handed to the control plane.",
        _stats("relay", "requests"),
    ),
    Metric(
        "zcfs_relay_outstanding",
        "gauge",
        "Requests that the control plane has in hand.",
        _stats("relay", "outstanding"),
    ),
    Metric(
        "zcfs_control_plane_restarts_total",
        "counter",
        "Times that the control plane was started again.",
        _stats("relay", "restarts"),
    ),
    Metric("zcfs_worker_threads", "gauge", "Worker threads.", _stats("workers", "threads")),
    Metric("zcfs_worker_jobs", "gauge", "Jobs of the worker threads.", _stats("workers", "jobs")),
    Metric("zcfs_threads", "gauge", "Threads that take requests.", _status("threads")),
    Metric("zcfs_inodes", "gauge", "Inodes that the kernel holds.", _stats("inodes")),
    Metric(
        "zcfs_descriptors",
        "gauge",
        "Descriptors of the source that the daemon holds.",
        _stats("descriptors"),
    ),
    Metric(
        "zcfs_backing_ids",
        "gauge",
        "Files registered with the kernel for passthrough.",
        _status("backing_ids"),
    ),
    Metric("zcfs_open_files", "gauge", "Open files, by the engine that serves them.", _open_files),
    Metric(
        "zcfs_max_write_bytes", "gauge", "The largest WRITE that was agreed.", _status("max_write")
    ),
    Metric("zcfs_read_only", "gauge", "1 if the mount is read-only.", _status("read_only")),
    Metric("zcfs_feature", "gauge", "1 if the kernel feature is in use.", _features),
    Metric("zcfs_degradation", "gauge", "What does not work as asked, and why; 1.", _degradations),
)
