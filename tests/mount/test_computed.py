"""The computed tree beside the mirror: whatever is asked of /.zcfs, the mirror stays whole.

The kernel remembers an ENOSYS for the whole connection, so after every call on /.zcfs the mirror's
own table must still hold on the same mount.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import mmap
import os
import select
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from . import harness
from .conftest import require
from .harness import Mode, Mount
from .linux import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    Child,
    call,
    can_lock,
    child,
    fallocate,
    get_flags,
    getdents_all,
    kill_all,
    link_fd,
    lock,
    opened,
    renameat2,
    run_child,
    set_flags,
    statx,
    syncfs,
    utimensat,
    wait_for,
)
from .places import Place
from .posix import load

pytestmark = pytest.mark.skipif(
    harness.control_plane() is None, reason="pyfuse3 or zcfs.fs is missing: no computed tree"
)
FAULTS = {"ZCFS_TEST_FAULTS": "1"}

PathCall = Callable[[Path, Path], object]  # a path below .zcfs, and a mirrored directory
ON_PATHS: dict[str, PathCall] = {
    "stat": lambda p, m: os.stat(p),
    "statx": lambda p, m: statx(p),
    "statvfs": lambda p, m: os.statvfs(p),
    "access": lambda p, m: [os.access(p, kind) for kind in (os.R_OK, os.W_OK, os.X_OK)],
    "readlink": lambda p, m: os.readlink(p),
    "listdir": lambda p, m: os.listdir(p),
    "chdir": lambda p, m: run_child(os.chdir, p),
    "truncate": lambda p, m: os.truncate(p, 0),
    "chmod": lambda p, m: os.chmod(p, 0o777),
    "chown": lambda p, m: os.chown(p, 1, 1),
    "utime": lambda p, m: os.utime(p),
    "utimensat": lambda p, m: utimensat(p, (1, 1), (2, 2)),
    "getxattr": lambda p, m: os.getxattr(p, "user.a"),
    "getxattr_acl": lambda p, m: os.getxattr(p, "system.posix_acl_access"),
    "getxattr_caps": lambda p, m: os.getxattr(p, "security.capability"),
    "setxattr": lambda p, m: os.setxattr(p, "user.a", b"x"),
    "setxattr_acl": lambda p, m: os.setxattr(p, "system.posix_acl_access", b"\2\0\0\0"),
    "listxattr": lambda p, m: os.listxattr(p),
    "removexattr": lambda p, m: os.removexattr(p, "user.a"),
    "unlink": lambda p, m: os.unlink(p),
    "rmdir": lambda p, m: os.rmdir(p),
    "mkdir": lambda p, m: os.mkdir(p / "new"),
    "mkfifo": lambda p, m: os.mkfifo(p / "new"),
    "mknod": lambda p, m: os.mknod(p / "new"),
    "symlink": lambda p, m: os.symlink("x", p / "new"),
    "create": lambda p, m: os.open(p / "new", os.O_CREAT | os.O_RDWR),
    "tmpfile": lambda p, m: os.open(p, os.O_TMPFILE | os.O_RDWR),
    "link_out": lambda p, m: os.link(p, m / "linked"),
    "link_in": lambda p, m: os.link(m / "f", p / "linked"),
    "rename_out": lambda p, m: os.rename(p, m / "moved"),
    "rename_in": lambda p, m: os.rename(m / "f", p / "moved"),
    "rename_over": lambda p, m: os.rename(m / "f", p),
    "rename_within": lambda p, m: os.rename(p, p.with_name("other")),
    "rename_noreplace": lambda p, m: renameat2(p, p.with_name("other"), RENAME_NOREPLACE),
    "rename_exchange": lambda p, m: renameat2(p, m / "f", RENAME_EXCHANGE),
    "open_write": lambda p, m: os.open(p, os.O_WRONLY),
    "open_truncate": lambda p, m: os.open(p, os.O_RDWR | os.O_TRUNC),
    "open_append": lambda p, m: os.open(p, os.O_RDWR | os.O_APPEND),
    "open_direct": lambda p, m: os.close(os.open(p, os.O_RDONLY | os.O_DIRECT)),
    "open_directory": lambda p, m: os.close(os.open(p, os.O_DIRECTORY)),
    "execute": lambda p, m: os.posix_spawn(p, [str(p)], {}),
    "inotify": lambda p, m: call(
        "inotify_add_watch", m_inotify(), os.fsencode(p), ctypes.c_uint32(0x100)
    ),
    "handle": lambda p, m: name_to_handle(p),
    "chroot": lambda p, m: run_child(os.chroot, p),
}
FdCall = Callable[[int, int], object]  # an open file or directory of .zcfs, a mirrored file
ON_FILES: dict[str, FdCall] = {
    "read": lambda fd, m: os.read(fd, 100),
    "pread": lambda fd, m: os.pread(fd, 1 << 20, 3),
    "pread_far": lambda fd, m: os.pread(fd, 10, 1 << 40),
    "fstat": lambda fd, m: os.fstat(fd),
    "fstatvfs": lambda fd, m: os.fstatvfs(fd),
    "seek_end": lambda fd, m: os.lseek(fd, 0, os.SEEK_END),
    "seek_data": lambda fd, m: os.lseek(fd, 0, os.SEEK_DATA),
    "seek_hole": lambda fd, m: os.lseek(fd, 0, os.SEEK_HOLE),
    "write": lambda fd, m: os.write(fd, b"x"),
    "ftruncate": lambda fd, m: os.ftruncate(fd, 0),
    "fchmod": lambda fd, m: os.fchmod(fd, 0o777),
    "fallocate": lambda fd, m: fallocate(fd, 0, 0, 10),
    "mmap": lambda fd, m: mmap.mmap(fd, 1, prot=mmap.PROT_READ).close(),
    "mmap_private": lambda fd, m: mmap.mmap(fd, 1, mmap.MAP_PRIVATE, mmap.PROT_READ).close(),
    "fsync": lambda fd, m: os.fsync(fd),
    "fdatasync": lambda fd, m: os.fdatasync(fd),
    "syncfs": lambda fd, m: syncfs(fd),
    "flock": lambda fd, m: fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB),
    "unflock": lambda fd, m: fcntl.flock(fd, fcntl.LOCK_UN),
    "getlk": lambda fd, m: lock(fd, fcntl.F_GETLK, fcntl.F_RDLCK),
    "setlk": lambda fd, m: lock(fd, fcntl.F_SETLK, fcntl.F_RDLCK),
    "setlkw": lambda fd, m: lock(fd, fcntl.F_SETLKW, fcntl.F_RDLCK),
    "ofd_setlk": lambda fd, m: lock(fd, fcntl.F_OFD_SETLK, fcntl.F_RDLCK),
    "unlock": lambda fd, m: lock(fd, fcntl.F_SETLK, fcntl.F_UNLCK),
    "getflags": lambda fd, m: get_flags(fd),
    "setflags": lambda fd, m: set_flags(fd, 0),
    "ioctl": lambda fd, m: fcntl.ioctl(fd, 0x80047A99, bytes(64)),
    "poll": lambda fd, m: select.select([fd], [], [], 0),
    "copy_out": lambda fd, m: os.copy_file_range(fd, m, 10),
    "copy_in": lambda fd, m: os.copy_file_range(m, fd, 10),
    "sendfile": lambda fd, m: os.sendfile(m, fd, 0, 10),
    "splice": lambda fd, m: splice_out(fd),
    "readahead": lambda fd, m: os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_WILLNEED),
    "fgetxattr": lambda fd, m: os.getxattr(fd, "user.a"),
    "flistxattr": lambda fd, m: os.listxattr(fd),
    "getdents": lambda fd, m: getdents_all(fd),
    "link_fd": lambda fd, m: link_fd(fd, f"/proc/self/fd/{fd}/../linked"),
    "lease": lambda fd, m: fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK),
}


def m_inotify() -> int:
    if not hasattr(m_inotify, "fd"):
        m_inotify.fd = call("inotify_init1", 0)  # type: ignore[attr-defined]
    return int(m_inotify.fd)  # type: ignore[attr-defined]


def name_to_handle(path: Path) -> None:
    handle = ctypes.create_string_buffer(b"\x80\0\0\0" + bytes(132), 136)
    call("name_to_handle_at", -100, os.fsencode(path), handle, ctypes.byref(ctypes.c_int()), 0)


def splice_out(fd: int) -> None:
    reader, writer = os.pipe()
    try:
        os.splice(fd, writer, 10)
    finally:
        os.close(reader)
        os.close(writer)


def attempt(name: str, act: Callable[[], object], wrong: list[str]) -> None:
    """Any answer will do but ENOSYS, and EIO, which means that something broke."""
    try:
        act()
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EIO, errno.EBADMSG, errno.ENOTCONN):
            wrong.append(f"{name}: {errno.errorcode[error.errno]}")
    except ValueError:
        pass  # mmap of an empty file


def send_everything(mount: Mount, directory: Path) -> list[str]:
    """Every call on every kind of computed object; returns what was answered wrong."""
    wrong: list[str] = []
    tree = mount.path / ".zcfs"
    (directory / "f").write_bytes(b"mirrored")
    for path in (tree, tree / "version", tree / "status.json", tree / "missing"):
        for name, act in ON_PATHS.items():
            attempt(f"{name} {path.name}", lambda act=act, path=path: act(path, directory), wrong)
            if sorted(os.listdir(directory)) != ["f"]:
                wrong.append(f"{name} {path.name}: changed the mirror: {os.listdir(directory)}")
                return wrong
    with opened(directory / "f") as mirrored:
        for path in (tree, tree / "version", tree / "metrics"):
            with opened(path, os.O_RDONLY) as fd:
                for name, on_fd in ON_FILES.items():
                    act = lambda on_fd=on_fd, fd=fd: on_fd(fd, mirrored)
                    attempt(f"{name} {path.name}", act, wrong)
    return wrong


@pytest.fixture
def computed(mount: Callable[..., Mount]) -> Iterator[Mount]:
    made = mount(computed=True, environment=FAULTS)
    made.control_plane_pid()
    yield made


def test_files(computed: Mount) -> None:
    tree = computed.path / ".zcfs"
    assert sorted(set(os.listdir(tree)) - {".fault"}) == [
        "metrics",
        "stats.json",
        "status.json",
        "version",
    ]
    assert (tree / "version").read_text().strip()
    status = json.loads((tree / "status.json").read_text())
    assert status["pid"] == computed.pid
    assert status["control_plane"]["state"] == "running"
    assert "LOOKUP" in json.loads((tree / "stats.json").read_text())["requests"]
    assert "zcfs_" in (tree / "metrics").read_text()
    for path in tree.iterdir():
        assert path.lstat().st_ino >> 63 == 1
    assert run_child((tree / "version").read_text, uid=1000) == (tree / "version").read_text()


def test_every_call_and_then_the_mirror(computed: Mount) -> None:
    """A short list of the mirror's calls; the whole table follows in the next test."""
    directory = computed.path / "d"
    directory.mkdir()
    assert send_everything(computed, directory) == []
    path = directory / "g"
    path.write_bytes(b"data")
    os.setxattr(path, "user.a", b"x")
    assert os.listxattr(path) == ["user.a"]
    assert os.getxattr(path, "user.a") == b"x"
    with opened(path) as fd:
        fallocate(fd, 0, 0, 8192)
        assert os.lseek(fd, 0, os.SEEK_HOLE) >= 4
        os.fsync(fd)
        assert can_lock(fd)
        fcntl.flock(fd, fcntl.LOCK_EX)
        get_flags(fd)
    os.rename(path, directory / "h")
    os.removexattr(directory / "h", "user.a")
    assert os.access(directory / "h", os.W_OK)


@pytest.mark.limit(120)
@pytest.mark.parametrize("mode", [Mode("kernel", "dev"), Mode("buffered", "uring")], ids=str)
def test_every_call_and_then_the_table(mode: Mode, scratch: Path) -> None:
    require(mode)
    place = Place(scratch / f"computed-{mode.engine}", mode, None)
    wrong = []
    try:
        directory = place.mount().path / "d"
        directory.mkdir()
        assert send_everything(place.mount(), directory) == []
        for check in load().values():
            if check.name.startswith("matrix") or (check.root and os.geteuid() != 0):
                continue
            try:
                place.run(check)
            except (OSError, AssertionError) as error:
                wrong.append(f"{check.name}: {error}")
    finally:
        place.close()
    assert not wrong, "\n".join(wrong)


def test_handler_that_fails(computed: Mount) -> None:
    """Its caller has EIO, the log the traceback, and nobody else notices."""
    computed.expect_log("Traceback", "RuntimeError", "^  ", "ERROR", r"^\s*[|+]", "ExceptionGroup")
    with pytest.raises(OSError) as raised:
        (computed.path / ".zcfs/.fault/raise").read_bytes()
    assert raised.value.errno == errno.EIO
    assert (computed.path / ".zcfs/version").read_bytes()
    wait_for("the traceback is in the log", lambda: b"RuntimeError" in computed.log.read_bytes())


def hanging(mount: Mount) -> int:
    """How many requests wait for Python."""
    return int(mount.stats()["relay"]["outstanding"])


def test_handler_that_hangs(computed: Mount) -> None:
    """Its callers wait, can be killed, and delay nothing else."""
    path = computed.path / "f"
    path.write_bytes(b"x")
    waiters = [Child((computed.path / ".zcfs/.fault/hang").read_bytes) for _ in range(12)]
    try:
        wait_for("they wait", lambda: hanging(computed) >= 1)
        for _ in range(50):
            assert path.read_bytes() == b"x"
        with child((computed.path / ".zcfs/version").read_bytes) as reader:
            assert reader.finished(10), "a hanging handler delays the computed tree"
            reader.result()
        # Over io_uring the kernel does not tell us of a caller who is killed before we have his
        # request: he would wait until the handler's time is over.
        wait_for("they all wait", lambda: hanging(computed) == len(waiters))
    finally:
        kill_all(waiters)


def test_handler_that_blocks_everything(computed: Mount) -> None:
    """The whole of Python stands still: the mirror does not."""
    path = computed.path / "f"
    path.write_bytes(b"x")
    with child((computed.path / ".zcfs/.fault/block").read_bytes) as reader:
        wait_for("it waits", lambda: hanging(computed) == 1)
        for turn in range(100):
            (computed.path / f"f{turn}").write_bytes(b"y")
            assert path.read_bytes() == b"x"
        assert len(os.listdir(computed.path)) == 101
        assert not reader.finished(), "the mirror waited for Python"
        computed.expect_log("control plane")
        reader.kill()


def test_handler_that_ends_python(computed: Mount) -> None:
    computed.expect_log("control plane")
    before = computed.status()["control_plane"]
    with pytest.raises(OSError):
        (computed.path / ".zcfs/.fault/exit").read_bytes()
    wait_for("the computed tree is back", lambda: _readable(computed))
    after = computed.status()["control_plane"]
    assert after["restarts"] == before["restarts"] + 1
    assert after["pid"] != before["pid"]


def _readable(mount: Mount) -> bool:
    try:
        return bool((mount.path / ".zcfs/version").read_bytes())
    except OSError:
        return False
