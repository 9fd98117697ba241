"""The surface: help, wrong usage, exit status."""

from __future__ import annotations

import pytest

from zcfs.cli.__main__ import VERBS

from .conftest import Run, one_line


def test_help_fits_a_screen(mountctl: Run) -> None:
    text = mountctl("--help", env={"COLUMNS": "80"}).stdout
    assert len(text.splitlines()) <= 24
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(mountctl: Run, verb: str) -> None:
    done = mountctl(verb, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(f"usage: mountctl {verb}")


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("nosuchverb",), "invalid choice"),
        (("mount", "--nosuch", "a", "b"), "--nosuch (see mountctl mount --help)"),
        (("mount", "a"), "MOUNTPOINT"),
        (("mount", "--engine", "warp", "a", "b"), "invalid choice: 'warp'"),
        (("mount", "--engine", "pool", "--pool-size", "1M", "a", "b"), "less than the 8 MiB"),
        (("mount", "-o", "engine=pool,frame-size=5000", "a", "b"), "no power of two"),
        (("mount", "--splice", "often", "a", "b"), "invalid choice: 'often'"),
        (("mount", "-o", "splice=often", "a", "b"), "unknown value 'often'"),
        (("mount", "--threads", "0", "a", "b"), "at least 1"),
        (("mount", "--threads", "many", "a", "b"), "many: must be a whole number"),
        (("demo", "--runs", "0"), "at least 1"),
        (("bench", "/tmp", "--runtime", "0"), "more than 0"),
        (("run", "/tmp"), "after --"),
        (("bench", "/tmp", "--cell", "nosuch"), "no cell nosuch"),
        (("bench", "/tmp", "--engines", "--cell", "direct-randwrite-4job-4file"), "one file"),
        (("bench", "/tmp", "--job", "/nosuch.fio"), "/nosuch.fio"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(
    mountctl: Run, words: tuple[str, ...], part: str
) -> None:
    done = mountctl(*words)
    assert done.returncode == 2
    assert part in one_line(done)


@pytest.mark.parametrize("verb", ["status", "stats", "umount"])
def test_not_a_mount(mountctl: Run, verb: str) -> None:
    done = mountctl(verb, "/tmp")
    assert done.returncode == 1
    assert "/tmp: no zcfs is mounted there" in one_line(done)


@pytest.mark.parametrize("verb", ["status", "stats", "probe", "bench"])
def test_json_prints_nothing_on_failure(mountctl: Run, verb: str) -> None:
    done = mountctl(verb, "/nosuch/dir", "--json")
    assert done.returncode == 1
    assert "/nosuch/dir" in one_line(done)


def test_without_the_daemon(mountctl: Run) -> None:
    done = mountctl("mount", "/tmp", "/mnt", env={"ZCFS_ZCFSD": "/nosuch/zcfsd"})
    assert done.returncode == 1
    assert "/nosuch/zcfsd" in one_line(done)
