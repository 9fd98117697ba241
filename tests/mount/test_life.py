"""Mounting and unmounting: again, twice, over each other, while busy; and as an ordinary user."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from . import harness
from .guard import mounts_below, umount
from .harness import Mode, Mount
from .linux import PATIENCE, child, fallocate, lock, opened, run_child, wait_for
from .posix import pattern
from .posix.locks import try_flock, try_posix


def test_mounted_again_and_again(start: Callable[..., Mount], mode: Mode) -> None:
    mounted = start(mode)
    source = mounted.source
    for turn in range(5):
        (mounted.path / f"f{turn}").write_bytes(b"%d" % turn)
        assert mounted.close() == []
        assert not mounted.has_socket()
        mounted = start(mode, source=source)
        assert (mounted.path / f"f{turn}").read_bytes() == b"%d" % turn


def test_unmount_while_busy(mount: Callable[..., Mount]) -> None:
    mounted = mount()
    with opened(mounted.path / "f", os.O_CREAT | os.O_RDWR) as fd:
        assert umount(str(mounted.path)) == errno.EBUSY
        os.write(fd, b"x")
    assert mounted.unmount() == 0
    assert (mounted.source / "f").read_bytes() == b"x"


def test_lazy_unmount(mount: Callable[..., Mount]) -> None:
    """The daemon lives as long as something is open, and then ends by itself."""
    mounted = mount()
    with opened(mounted.path / "f", os.O_CREAT | os.O_RDWR) as fd:
        assert umount(str(mounted.path), 2) == 0
        os.write(fd, pattern(10000))
        os.fsync(fd)
        assert os.pread(fd, 10000, 0) == pattern(10000)
        assert mounted.alive()
    assert mounted.process.wait(PATIENCE) == 0


def test_data_written_just_before_unmount(mount: Callable[..., Mount]) -> None:
    mounted = mount()
    for at in range(50):
        (mounted.path / f"f{at}").write_bytes(pattern(50000, at))
    assert mounted.unmount() == 0
    for at in range(50):
        assert (mounted.source / f"f{at}").read_bytes() == pattern(50000, at)


def test_two_mounts_of_one_source(start: Callable[..., Mount], mode: Mode) -> None:
    """They see each other's files, and locks bind across them."""
    one = start(mode)
    two = start(mode, source=one.source)
    (one.path / "f").write_bytes(b"one")
    assert (two.path / "f").read_bytes() == b"one"
    with opened(one.path / "f") as fd:
        lock(fd, 6, 1)
        assert not try_posix(two.path / "f")
        assert try_flock(two.path / "f")
    with opened(one.path / "f") as a, opened(two.path / "g", os.O_CREAT | os.O_RDWR) as b:
        try:
            got = os.copy_file_range(a, b, 3)
        except OSError as error:
            assert error.errno == errno.EXDEV
        else:
            assert os.pread(b, 9, 0) == b"one"[:got]
    with pytest.raises(OSError) as raised:
        os.rename(one.path / "f", two.path / "h")
    assert raised.value.errno == errno.EXDEV


def test_mount_of_a_mount(start: Callable[..., Mount], mode: Mode) -> None:
    """A stacked source: whatever has to degrade does so with a reason, and the table holds."""
    inner = start(mode)
    outer = start(mode, source=inner.path)
    outer.expect_log("passthrough", "buffered")
    status = outer.status()
    if status["engine"] != mode.engine:
        assert any("passthrough" in one["what"] + one["reason"] for one in status["degradations"])
    (outer.path / "f").write_bytes(pattern(100000))
    with opened(outer.path / "f") as fd:
        os.pwrite(fd, b"more", 5)
        fallocate(fd, 0, 0, 200000)
        os.fsync(fd)
    wanted = pattern(100000)[:5] + b"more" + pattern(100000)[9:] + bytes(100000)
    assert (inner.source / "f").read_bytes() == (outer.path / "f").read_bytes() == wanted
    os.rename(outer.path / "f", outer.path / "g")
    assert os.listdir(inner.source) == ["g"]
    assert outer.close() == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_bind_mount_outlives_the_mount(
    mount: Callable[..., Mount], new_directory: Callable[[str], Path]
) -> None:
    mounted = mount()
    (mounted.path / "d").mkdir()
    bound = new_directory("bound") / "b"
    bound.mkdir()
    subprocess.run(["mount", "--bind", mounted.path / "d", bound], check=True)
    try:
        harness.umount_when_free(str(mounted.path))
        (bound / "f").write_bytes(b"x")
        assert mounted.alive()
    finally:
        harness.umount_when_free(str(bound))
    assert mounted.process.wait(PATIENCE) == 0
    assert (mounted.source / "d" / "f").read_bytes() == b"x"


def test_daemonizes(
    start: Callable[..., Mount], mode: Mode, new_directory: Callable[[str], Path]
) -> None:
    """Without --foreground the command returns when the mount answers; a status of 0 means that."""
    base = new_directory("daemon")
    for name in ("source", "mnt"):
        (base / name).mkdir()
    (base / "source/f").write_bytes(b"x")
    options = ["--engine", mode.engine, "--transport", mode.transport, "--log", base / "log"]
    done = subprocess.run(
        [str(harness.zcfsd()), *map(str, options), base / "source", base / "mnt"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=PATIENCE,
    )
    try:
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
        assert (base / "mnt/f").read_bytes() == b"x"
        ((_, kind, minor),) = mounts_below(str(base))
        pid = harness.ask(minor, "status")["pid"]
        assert kind == "fuse.zcfs"
        assert os.readlink(f"/proc/{pid}/cwd") == "/"
        assert os.getsid(pid) != os.getsid(0)
    finally:
        umount(str(base / "mnt"))
    wait_for("the daemon has ended", lambda: not Path(f"/proc/{pid}").exists())
    assert (base / "log").read_text() == ""


def test_what_the_mount_is_called(mount: Callable[..., Mount]) -> None:
    mounted = mount()
    lines = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").split("\n")
    (line,) = [line for line in lines if f" {mounted.path} " in line]
    kind, source, options = line.split(" - ")[1].split(" ", 2)
    assert (kind, source) == ("fuse.zcfs", str(mounted.source))
    assert "default_permissions" in options


def test_local_locks(mount: Callable[..., Mount]) -> None:
    """--locks local: locks bind on the mount, and not the source."""
    mounted = mount("--locks", "local")
    path = mounted.path / "f"
    path.write_bytes(b"")
    with opened(path) as fd:
        lock(fd, 6, 1)
        assert not try_posix(path)
        assert try_posix(mounted.source / "f")
    assert try_posix(path)


@pytest.fixture
def dev_fuse_for_users() -> Iterator[None]:
    """As udev sets it where it runs."""
    before = stat.S_IMODE(os.stat("/dev/fuse").st_mode)
    os.chmod("/dev/fuse", 0o666)
    yield
    os.chmod("/dev/fuse", before)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
@pytest.mark.skipif(not shutil.which("fusermount3"), reason="fusermount3 is not installed")
@pytest.mark.usefixtures("dev_fuse_for_users")
def test_mounted_by_an_ordinary_user(new_directory: Callable[[str], Path]) -> None:
    """--engine auto degrades, with a reason; the mount works for its user and is hidden from others."""
    if reason := harness.why_not(Mode("buffered", "dev")):
        pytest.skip(reason)
    base = new_directory("user")
    for path in (base, base / "source", base / "mnt"):
        path.mkdir(exist_ok=True)
        os.chown(path, 1000, 1000)

    def life() -> list[str]:
        os.environ["XDG_RUNTIME_DIR"] = str(base)
        mounted = harness.start(base / "source", base / "mnt", None, "-o", "noexec,noatime")
        mounted.expect_log("passthrough", "transport", "read-ahead", "unprivileged")
        try:
            use(mounted)
        finally:
            with contextlib.suppress(OSError):
                subprocess.run(["fusermount3", "-u", mounted.path], check=True)
            mounted.process.wait(PATIENCE)
        return mounted.close()

    def use(mounted: Mount) -> None:
        status = mounted.status()
        assert status["engine"] == "buffered"
        assert any("passthrough" in one["what"] for one in status["degradations"]), status
        (line,) = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f" {mounted.path} " in line]
        assert {"nosuid", "nodev", "noexec", "noatime"} <= set(line.split()[5].split(",")), line
        root = mounted.path
        (root / "f").write_bytes(pattern(300000))
        assert (root / "f").read_bytes() == (mounted.source / "f").read_bytes() == pattern(300000)
        os.rename(root / "f", root / "g")
        os.mkdir(root / "d")
        with opened(root / "g") as fd:
            lock(fd, 6, 1)
            assert not try_posix(root / "g")
            os.fsync(fd)
        os.setxattr(root / "g", "user.a", b"x")
        assert (root / "g").stat().st_uid == 1000
        assert sorted(os.listdir(root)) == ["d", "g"]

    with child(life, uid=1000, gid=1000) as process:
        assert process.finished(2 * PATIENCE)
        assert process.result() == []
    assert not mounts_below(str(base))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
@pytest.mark.skipif(not shutil.which("fusermount3"), reason="fusermount3 is not installed")
@pytest.mark.usefixtures("dev_fuse_for_users")
def test_refused_by_fusermount3(new_directory: Callable[[str], Path]) -> None:
    """Its own words are passed on: here, that the mount point is not the user's."""
    if reason := harness.why_not(Mode("buffered", "dev")):
        pytest.skip(reason)
    base = new_directory("user")
    for name in ("source", "mnt"):
        (base / name).mkdir()
    done = subprocess.run(
        [str(harness.zcfsd()), base / "source", base / "mnt"],
        user=1000, group=1000, extra_groups=[], capture_output=True, text=True, cwd="/",
    )
    assert done.returncode == 1
    assert f"no write access to mountpoint {base}/mnt" in done.stderr, done.stderr
    assert not mounts_below(str(base))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_without_allow_other(mount: Callable[..., Mount], mode_once: Mode) -> None:
    """Other users are let in by --allow-other only, which the harness gives as root."""
    mounted = mount()
    (mounted.path / "f").write_bytes(b"x")
    assert run_child((mounted.path / "f").read_bytes, uid=1000) == b"x"
    assert mounted.status()["allow_other"] is True
