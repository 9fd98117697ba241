"""Bad input: one clear line that names the path, exit status 1 or 2, nothing mounted, nothing lost."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import struct
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from . import harness
from .guard import mounts_below
from .harness import Mount
from .linux import FS_IOC_SHUTDOWN, PATIENCE, opened
from .posix import pattern

pytestmark = pytest.mark.skipif(harness.zcfsd() is None, reason="zcfsd is not built")


@dataclass
class Case:
    """Arguments for a base directory, and what must come of them."""

    arguments: Callable[[Path], list[object]]
    words: list[str]  # what the message names
    status: int = 1
    prepare: Callable[[Path], object] = lambda base: None


def both(base: Path) -> list[object]:
    return [base / "source", base / "mnt"]


def with_option(*options: str) -> Callable[[Path], list[object]]:
    return lambda base: [*options, *both(base)]


CASES = {
    "source_missing": Case(lambda b: [b / "nowhere", b / "mnt"], ["source", "nowhere"]),
    "source_is_a_file": Case(lambda b: [b / "file", b / "mnt"], ["source", "file", "directory"]),
    "source_below_mount_point": Case(
        lambda b: ["-o", "nonempty", b / "mnt/below", b / "mnt"],
        ["source", "below", "mount point"],
        prepare=lambda b: (b / "mnt/below").mkdir(),
    ),
    "mount_point_missing": Case(
        lambda b: [b / "source", b / "nowhere"], ["mount point", "nowhere"]
    ),
    "mount_point_is_a_file": Case(lambda b: [b / "source", b / "file"], ["mount point", "file"]),
    "mount_point_not_empty": Case(
        both, ["mount point", "mnt", "not empty"], prepare=lambda b: (b / "mnt/f").write_bytes(b"")
    ),
    "unknown_option": Case(with_option("--nonsense"), ["nonsense"], status=2),
    "unknown_mount_option": Case(with_option("-o", "nonsense"), ["nonsense"], status=2),
    "unknown_mount_option_with_value": Case(
        with_option("-o", "nonsense=3"), ["nonsense"], status=2
    ),
    "unknown_engine": Case(with_option("--engine", "warp"), ["engine", "warp"], status=2),
    "unknown_transport": Case(with_option("--transport", "warp"), ["transport", "warp"], status=2),
    "unknown_locks": Case(with_option("--locks", "warp"), ["locks", "warp"], status=2),
    "pool_too_small": Case(with_option("--pool-size", "1M"), ["pool-size", "1M"], status=2),
    "frame_size": Case(with_option("--frame-size", "12K"), ["frame-size", "12K"], status=2),
    "policy_without_engine": Case(with_option("--policy", "*.db"), ["*.db", "ENGINE"], status=2),
    "policy_unknown_engine": Case(
        with_option("--policy", "*.db=warp"), ["*.db=warp", "engine"], status=2
    ),
    "policy_bad_glob": Case(with_option("-o", "policy=a[b=pool"), ["a[b", "'['"], status=2),
    "policy_empty_glob": Case(with_option("--policy", "=pool"), ["empty"], status=2),
    "policy_absolute_glob": Case(with_option("--policy", "/a=pool"), ["/a", "relative"], status=2),
    "pin_leads_out": Case(with_option("--pin", "../a"), ["../a", "'..'"], status=2),
    "pin_size": Case(with_option("--pin-size", "lots"), ["pin-size", "lots"], status=2),
    "pin_size_too_small": Case(with_option("--pin-size", "1K"), ["pin-size", "1K"], status=2),
    "bad_number": Case(with_option("--threads", "many"), ["threads", "many"], status=2),
    "bad_timeout": Case(with_option("-o", "attr_timeout=-1"), ["attr_timeout"], status=2),
    "no_arguments": Case(lambda b: [], ["source"], status=2),
    "one_argument": Case(lambda b: [b / "source"], ["mount point"], status=2),
    "three_arguments": Case(lambda b: [*both(b), b / "more"], [], status=2),
    "log_cannot_be_written": Case(with_option("--log", "/nowhere/at/all"), ["/nowhere/at/all"]),
}


def run(
    base: Path, arguments: list[object], wrapper: list[str] | None = None
) -> tuple[int, str, str]:
    """Status, standard error, and what the ready descriptor said. Never in the foreground for long."""
    ready, ready_in = os.pipe()
    command = [*(wrapper or []), str(harness.zcfsd()), "--ready-fd", str(ready_in)]
    process = subprocess.run(
        [*command, *map(str, arguments)],
        pass_fds=[ready_in],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    os.close(ready_in)
    with os.fdopen(ready) as pipe:
        said = pipe.read()
    assert process.stdout == "", "something on stdout although it failed"
    return process.returncode, process.stderr, said


def prepare(base: Path) -> None:
    (base / "source").mkdir()
    (base / "source" / "kept").write_bytes(b"kept")
    (base / "mnt").mkdir()
    (base / "file").write_bytes(b"file")


def assert_refused(base: Path, case: Case, answer: tuple[int, str, str]) -> None:
    status, errors, said = answer
    assert status == case.status, errors
    assert errors.count("\n") == 1 and errors.startswith("zcfsd: "), errors
    missing = [word for word in case.words if word not in errors]
    assert not missing, f"the message does not say {missing}: {errors}"
    if said:
        assert said == f"error: {errors.removeprefix('zcfsd: ')}"
    assert not mounts_below(str(base))
    assert (base / "source" / "kept").read_bytes() == b"kept"


@pytest.mark.parametrize("name", CASES)
def test_bad_input(new_directory: Callable[[str], Path], name: str) -> None:
    base, case = new_directory("bad"), CASES[name]
    prepare(base)
    case.prepare(base)
    assert_refused(base, case, run(base, case.arguments(base)))


def test_mount_point_already_mounted(start: Callable[..., Mount], mode_once: harness.Mode) -> None:
    mounted = start(mode_once)
    case = Case(both, ["mount point", str(mounted.path), "already mounted"])
    status, errors, _ = run(mounted.path.parent, [mounted.source, mounted.path])
    assert status == case.status
    assert errors.count("\n") == 1
    assert all(word in errors for word in case.words), errors
    (mounted.path / "still").write_bytes(b"x")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_mount_point_of_a_dead_daemon(start: Callable[..., Mount], mode_once: harness.Mode) -> None:
    """It says what to do; it does not hang on the dead mount."""
    mounted = start(mode_once)
    mounted.kill()
    status, errors, _ = run(mounted.path.parent, [mounted.source, mounted.path])
    assert status == 1
    assert str(mounted.path) in errors and "umount" in errors, errors


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize("fault", ["missing", "forbidden"])
def test_no_dev_fuse(new_directory: Callable[[str], Path], fault: str) -> None:
    """In a mount namespace of its own, without /dev/fuse or with one that cannot be opened."""
    base = new_directory("bad")
    prepare(base)
    hide = "mount -t tmpfs none /dev"
    if fault == "forbidden":  # a node that no driver answers for
        hide += " && mknod /dev/fuse c 10 999"
    wrapper = ["unshare", "-m", "sh", "-c", f'{hide} && exec "$@"', "sh"]
    answer = run(base, both(base), wrapper)
    assert_refused(base, Case(both, ["/dev/fuse"]), answer)


def test_help_and_version() -> None:
    for option, words in (("--help", ["--engine", "SOURCE"]), ("--version", ["0."])):
        done = subprocess.run([str(harness.zcfsd()), option], capture_output=True, text=True)
        assert done.returncode == 0
        assert all(word in done.stdout for word in words)


def test_odd_names(mount: Callable[..., Mount], new_directory: Callable[[str], Path]) -> None:
    """Spaces, commas, newlines, backslashes and other bytes in the paths of source and mount point."""
    base = new_directory("odd")
    source = base / "so urce,a=b\\040\n\udcff"
    source.mkdir()
    (source / "f").write_bytes(b"x")
    mounted = mount(source=source)
    assert (mounted.path / "f").read_bytes() == b"x"
    assert mounted.status()["source"]


def test_full_source(mount: Callable[..., Mount], disk: Callable[..., Path]) -> None:
    """ENOSPC is told as such, what was written stays, and room that is made is used."""
    mounted = mount(source=disk(16))
    written = 0
    with (
        pytest.raises(OSError) as raised,
        opened(mounted.path / "big", os.O_CREAT | os.O_RDWR) as fd,
    ):
        while True:
            assert os.write(fd, pattern(65536, written)) == 65536
            written += 1
    assert raised.value.errno == errno.ENOSPC
    assert written > 50
    with pytest.raises(OSError) as raised:
        (mounted.path / "more").write_bytes(bytes(1 << 20))
    assert raised.value.errno == errno.ENOSPC
    with opened(mounted.path / "big", os.O_RDONLY) as fd:
        for at in (0, written // 2, written - 1):
            assert os.pread(fd, 65536, at * 65536) == pattern(65536, at)
    (mounted.path / "big").unlink()
    (mounted.path / "more").write_bytes(pattern(1 << 20))
    assert (mounted.source / "more").read_bytes() == pattern(1 << 20)
    assert mounted.close() == []


def test_source_without_inodes(mount: Callable[..., Mount], disk: Callable[..., Path]) -> None:
    mounted = mount(source=disk(4))
    with pytest.raises(OSError) as raised:
        for at in range(100000):
            (mounted.path / f"f{at}").mkdir()
    assert raised.value.errno == errno.ENOSPC
    (mounted.path / "f0").rmdir()
    (mounted.path / "again").mkdir()
    assert mounted.close() == []


def test_source_that_fails(mount: Callable[..., Mount], disk: Callable[..., Path]) -> None:
    """The disk is gone: callers have EIO (or what the source says), the daemon lives and unmounts."""
    source = disk(16)
    (source / "f").write_bytes(pattern(100000))
    (source / "d").mkdir()
    mounted = mount(source=source)
    mounted.expect_log("Input/output error", "source")
    root = mounted.path
    with opened(source, os.O_RDONLY) as fd:
        fcntl.ioctl(fd, FS_IOC_SHUTDOWN, struct.pack("I", 2))
    for act in (
        lambda: (root / "new").write_bytes(b"x"),
        lambda: (root / "newdir").mkdir(),
        lambda: os.truncate(root / "f", 5),
        lambda: os.chmod(root / "f", 0o600),
        lambda: os.rename(root / "f", root / "g"),
    ):
        with pytest.raises(OSError) as raised:
            act()
        assert raised.value.errno in (errno.EIO, errno.EROFS, 117), raised.value
    assert mounted.status()["source"] == str(source)
    assert mounted.close() == []


def test_mount_point_in_the_source(
    mount: Callable[..., Mount], start: Callable[..., Mount]
) -> None:
    """The mount shows the source, and in it the mount point as it is without the mount."""
    mounted = mount()
    source = mounted.source
    (source / "inner").mkdir()
    assert mounted.close() == []
    command = [str(harness.zcfsd()), "--foreground", str(source), str(source / "inner")]
    ready, ready_in = os.pipe()
    process = subprocess.Popen(
        [*command, "--ready-fd", str(ready_in)], pass_fds=[ready_in], stderr=subprocess.PIPE
    )
    os.close(ready_in)
    try:
        said = os.read(ready, 4096)
        if said == b"ready\n":
            assert os.listdir(source / "inner") == ["inner"]
            assert os.listdir(source / "inner" / "inner") == []
        else:
            assert b"source" in said, said
    finally:
        os.close(ready)
        harness.stop_process(process)
        assert process.stderr is not None
        process.stderr.close()
    shutil.rmtree(source / "inner")
