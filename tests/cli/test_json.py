"""--json: stable, documented keys, as zcfs/schemas/ has them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from importlib import resources
from typing import Any

import jsonschema
import pytest

from .conftest import Site, one_line

NAMES = ("list", "status", "stats", "probe", "bench", "engines", "pin")


def schema(name: str) -> dict[str, Any]:
    text = resources.files("zcfs").joinpath(f"schemas/{name}.json").read_text()
    document: dict[str, Any] = json.loads(text)
    return document


def check(name: str, document: object) -> None:
    rules = schema(name)
    jsonschema.Draft202012Validator(rules).validate(document)


def undocumented(rules: dict[str, Any], document: object, at: str = "") -> Iterator[str]:
    """The keys of `document` that the schema does not describe."""
    if isinstance(document, dict):
        known = rules.get("properties", {})
        for key, value in document.items():
            inner = known.get(key, rules.get("additionalProperties"))
            if not isinstance(inner, dict):
                yield f"{at}/{key}"
            else:
                yield from undocumented(inner, value, f"{at}/{key}")
    elif isinstance(document, list):
        for item in document:
            yield from undocumented(rules.get("items", {}), item, at)


@pytest.mark.parametrize("name", NAMES)
def test_schemas_are_schemas_and_describe_every_key(name: str) -> None:
    rules = schema(name)
    jsonschema.Draft202012Validator.check_schema(rules)

    def walk(node: dict[str, Any], at: str) -> Iterator[str]:
        for key, value in node.get("properties", {}).items():
            if "description" not in value and value.get("type") != "object":
                yield f"{at}/{key}"
            yield from walk(value, f"{at}/{key}")

    assert list(walk(rules, "")) == []


@pytest.mark.parametrize("name", ["status", "stats"])
def test_of_a_mount(mounted: Site, name: str) -> None:
    (mounted.point / "file").read_text()
    document = mounted.json(name, mounted.point)
    check(name, document)
    assert list(undocumented(schema(name), document)) == []


def test_list(mounted: Site) -> None:
    document = mounted.json("list")
    check("list", document)
    row = next(r for r in document["mounts"] if r["mountpoint"] == str(mounted.point))
    assert row["state"] == "serving"
    assert row["source"] == str(mounted.source)


def test_probe(site: Site) -> None:
    document = site.json("probe", site.source)
    check("probe", document)
    names = {row["name"] for row in document["checks"]}
    wanted = {"fuse", "passthrough", "io_uring", "fuse_io_uring", "o_direct", "memlock"}
    assert wanted | {"huge_pages", "dma_bounce", "control_plane", "linux_aio"} <= names
    assert all(row["reason"] for row in document["checks"])
    ring = next(row for row in document["checks"] if row["name"] == "io_uring")
    assert not ring["granted"] or "registered" in ring["reason"]


def test_probe_for_people_has_a_line_a_check(site: Site) -> None:
    lines = site.run("probe", site.source).stdout.splitlines()
    assert len(lines) == len(site.json("probe", site.source)["checks"])
    assert all(line[0] in "✓✗?" for line in lines)


@pytest.mark.limit(120)
def test_bench(site: Site) -> None:
    words = ["--cell", "warm-randread", "--runs", "1", "--runtime", "0.2", "--size", "8"]
    document = site.json("bench", site.source, *words)
    check("bench", document)
    assert [cell["name"] for cell in document["cells"]] == ["warm-randread"]
    assert not site.is_mounted()
    assert [p.name for p in site.source.iterdir()] == ["file"]


@pytest.mark.limit(120)
def test_bench_for_people(site: Site) -> None:
    words = ["--cell", "warm-randread", "--runs", "1", "--runtime", "0.2", "--size", "8"]
    title, *table = site.run("bench", site.source, *words).stdout.splitlines()
    assert title.startswith(f"{site.source}: ") and "median of 1, fio" in title
    assert any("warm random read 4 KiB" in line for line in table)


@pytest.mark.limit(120)
def test_bench_of_the_engines(site: Site) -> None:
    words = ["--engines", "--cell", "direct-randread-qd1-psync", "--runs", "1", "--runtime", "0.2"]
    document = site.json("bench", site.source, *words, "--size", "8")
    check("engines", document)
    assert list(undocumented(schema("engines"), document)) == []
    ways = {way["name"]: way for way in document["ways"]}
    assert list(ways) == ["kernel", "buffered", "pool hit", "pool miss", "pinned"]
    there = {name for name, way in ways.items() if way["missing"] is None}
    assert {"buffered", "pool hit", "pool miss"} <= there
    assert ways["buffered"]["copies_per_byte"] == pytest.approx(2, abs=0.05)  # in and out
    assert ways["pool hit"]["copies_per_byte"] == pytest.approx(1.5, abs=0.55)  # by transport
    (cell,) = document["cells"]
    assert set(cell["figures"]) == there | {"bare"}
    if os.geteuid() == 0 and there >= {"kernel", "pinned"}:
        assert ways["kernel"]["copies_per_byte"] == ways["pinned"]["copies_per_byte"] == 0
    assert not site.is_mounted()
    assert [p.name for p in site.source.iterdir()] == ["file"]


def test_bench_of_a_wrong_job_file(site: Site) -> None:
    job = site.base / "wrong.fio"
    job.write_text("[first]\nnonsense=1\nbogus=1\n")
    done = site.run("bench", site.source, "--job", job, "--runs", "1")
    assert done.returncode == 1
    assert "bogus" in one_line(done)


@pytest.mark.limit(120)
def test_bench_of_a_job_file(site: Site) -> None:
    job = site.base / "two.fio"
    job.write_text("[global]\nbs=4k\nsize=1m\n[first]\nrw=write\n[second]\nstonewall\nrw=read\n")
    document = site.json("bench", site.source, "--job", job, "--runs", "1")
    check("bench", document)
    assert [cell["name"] for cell in document["cells"]] == ["first", "second"]
    assert [p.name for p in site.source.iterdir()] == ["file"]
