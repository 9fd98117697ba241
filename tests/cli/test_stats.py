"""mountctl stats: how data was moved, and how often it was copied."""

from __future__ import annotations

import pytest

from .conftest import Site


@pytest.mark.parametrize(("engine", "copies"), [("buffered", "2.00"), ("pool", "1.00")])
def test_copies_per_byte(site: Site, engine: str, copies: str) -> None:
    (site.source / "large").write_bytes(b"x" * (1 << 20))
    site.mount("--engine", engine, "--transport", "dev", "--splice", "never")
    assert len((site.point / "large").read_bytes()) == 1 << 20
    done = site.run("stats", site.point)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    head = next(line for line in lines if line.startswith("PATH"))
    assert head.split() == ["PATH", "BYTES", "COPIED", "MOVED", "SYSCALLS", "COPIES/BYTE"]
    row = next(line for line in lines if line.startswith(f"{engine} read"))
    assert row.split()[-1] == copies
    pool = [line for line in lines if line.startswith("pool ") and "hits" in line]
    assert len(pool) == (engine == "pool")


def test_passthrough_has_sizes_only(site: Site) -> None:
    site.mount("--engine", "kernel")
    if site.json("status", site.point)["engine"] != "kernel":
        pytest.skip("no passthrough here")
    (site.point / "file").read_text()
    seen = site.json("stats", site.point)["ledger"]["kernel"]["read"]
    assert seen["bytes_passthrough"] == len("content\n")
    assert seen["bytes_delivered"] == 0
    assert "copies_per_byte" not in seen


def test_splice_is_in_the_status(site: Site) -> None:
    site.mount("--engine", "buffered", "--splice", "always", "--transport", "dev")
    assert site.json("status", site.point)["splice"] == "always"
    assert (site.point / "file").read_text() == "content\n"
    seen = site.json("stats", site.point)["ledger"]["buffered"]["read"]
    assert seen["bytes_moved"] == len("content\n")
