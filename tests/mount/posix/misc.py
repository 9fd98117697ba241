"""Special files, programs, flags, permissions asked for, syncing, and whole-filesystem figures."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import shutil
import socket
import stat
import subprocess
from pathlib import Path

from ..linux import (
    FS_APPEND_FL,
    FS_IMMUTABLE_FL,
    FS_NODUMP_FL,
    Child,
    call,
    can_lease,
    get_flags,
    opened,
    run_child,
    set_flags,
    statx,
    syncfs,
    wait_for,
)
from . import Tree, as_user, check, each_fails, fails, pattern


@check()
def statfs_figures(t: Tree) -> None:
    here, there = os.statvfs(t.path), os.statvfs(t.source)
    assert (here.f_bsize, here.f_frsize, here.f_namemax) == (there.f_bsize, there.f_frsize, 255)
    assert (here.f_blocks, here.f_files) == (there.f_blocks, there.f_files)
    assert abs(here.f_bfree - there.f_bfree) * here.f_frsize < 1 << 28
    with opened(t.file("f")) as fd:
        assert os.fstatvfs(fd).f_blocks == there.f_blocks


@check()
def block_size_and_blocks(t: Tree) -> None:
    path = t.file("f", pattern(100000))
    with opened(path) as fd:
        os.fsync(fd)
    assert path.stat().st_blksize >= 512
    assert path.stat().st_blocks == (t.source / "f").stat().st_blocks >= 100000 // 512
    with opened(t / "sparse", os.O_CREAT | os.O_RDWR) as fd:
        os.ftruncate(fd, 1 << 40)
        assert os.fstat(fd).st_blocks < 100


@check()
def access_by_root(t: Tree) -> None:
    path = t.file("f", mode=0)
    assert os.access(path, os.F_OK)
    if os.geteuid() == 0:
        assert os.access(path, os.R_OK | os.W_OK)
        assert not os.access(path, os.X_OK)
        path.chmod(0o001)
        assert os.access(path, os.X_OK)


@check(root=True)
def access_by_user(t: Tree) -> None:
    path = t.file("f", mode=0o640, group=2000)
    for groups, wanted in (((), [False, False]), ((2000,), [True, False])):
        got = [as_user(os.access, path, kind, groups=groups) for kind in (os.R_OK, os.W_OK)]
        assert got == wanted
    assert as_user(os.access, path, os.F_OK)
    assert as_user(os.access, t.path, os.W_OK) == bool(t.path.stat().st_mode & 0o002)


@check(root=True)
def access_uses_the_real_user(t: Tree) -> None:
    path = t.file("f", mode=0o600)

    def work() -> tuple[bool, bool]:
        os.setresuid(1000, 0, 0)
        return os.access(path, os.R_OK), os.access(path, os.R_OK, effective_ids=True)

    assert run_child(work) == (False, True)


@check()
def inode_flags(t: Tree) -> None:
    t.file("f")
    t.directory("d")
    for name in ("f", "d"):
        with opened(t / name, os.O_RDONLY) as fd, opened(t.source / name, os.O_RDONLY) as there:
            before = get_flags(fd)
            assert before == get_flags(there)
            set_flags(fd, before | FS_NODUMP_FL)
            assert get_flags(there) == get_flags(fd) == before | FS_NODUMP_FL
            set_flags(fd, before)


@check(root=True)
def inode_flags_by_others(t: Tree) -> None:
    path = t.file("f", mode=0o666)

    def work(flag: int) -> None:
        with opened(path) as fd:
            set_flags(fd, get_flags(fd) | flag)

    with fails(errno.EACCES, errno.EPERM):
        as_user(work, FS_NODUMP_FL)
    os.chown(path, 1000, -1)
    as_user(work, FS_NODUMP_FL)
    with fails(errno.EPERM):
        as_user(work, FS_IMMUTABLE_FL)


@check(root=True)
def append_only_file(t: Tree) -> None:
    path = t.file("f", b"log\n")
    with opened(path) as fd:
        before = get_flags(fd)
        set_flags(fd, before | FS_APPEND_FL)
    try:
        for flags in (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_APPEND | os.O_TRUNC):
            with fails(errno.EPERM):
                os.open(path, flags)
        with opened(path, os.O_WRONLY | os.O_APPEND) as fd:
            os.write(fd, b"more\n")
            with fails(errno.EPERM):
                os.ftruncate(fd, 0)
        each_fails(
            errno.EPERM,
            {
                "unlink": lambda: os.unlink(path),
                "rename": lambda: os.rename(path, t / "g"),
                "link": lambda: os.link(path, t / "l"),
                "truncate": lambda: os.truncate(path, 0),
                "chmod": lambda: os.chmod(path, 0o600),
            },
        )
        assert path.read_bytes() == b"log\nmore\n"
    finally:
        with opened(t.source / "f", os.O_RDONLY) as fd:
            set_flags(fd, before)
    path.unlink()


@check(root=True)
def immutable_file(t: Tree) -> None:
    path = t.file("f", b"data")
    with opened(path) as fd:
        before = get_flags(fd)
        set_flags(fd, before | FS_IMMUTABLE_FL)
        assert statx(path).attributes & 0x10 or t.mirrored
    try:
        each_fails(
            errno.EPERM,
            {
                "open": lambda: os.open(path, os.O_WRONLY),
                "unlink": lambda: os.unlink(path),
                "rename": lambda: os.rename(path, t / "g"),
                "link": lambda: os.link(path, t / "l"),
                "chmod": lambda: os.chmod(path, 0o600),
                "chown": lambda: os.chown(path, 1000, -1),
                "utime": lambda: os.utime(path, (1, 1)),
                "truncate": lambda: os.truncate(path, 1),
                "setxattr": lambda: os.setxattr(path, "user.a", b"x"),
            },
        )
        assert path.read_bytes() == b"data"
    finally:
        with opened(t.source / "f", os.O_RDONLY) as fd:
            set_flags(fd, before)
    path.unlink()


@check(root=True)
def immutable_directory(t: Tree) -> None:
    d = t.directory("d")
    (d / "f").write_bytes(b"x")
    with opened(d, os.O_RDONLY) as fd:
        before = get_flags(fd)
        set_flags(fd, before | FS_IMMUTABLE_FL)
    try:
        each_fails(
            errno.EPERM,
            {
                "mkdir": lambda: os.mkdir(d / "x"),
                "create": lambda: os.open(d / "x", os.O_CREAT | os.O_WRONLY),
                "unlink": lambda: os.unlink(d / "f"),
                "rename": lambda: os.rename(d / "f", t / "f"),
                "rmdir": lambda: os.rmdir(d),
            },
        )
        (d / "f").write_bytes(b"y")
    finally:
        with opened(t.source / "d", os.O_RDONLY) as fd:
            set_flags(fd, before)


@check()
def unknown_ioctl(t: Tree) -> None:
    with opened(t.file("f")) as fd, opened(t.path, os.O_RDONLY) as d:
        for handle in (fd, d):
            for command in (0x5401, 0x80047A99, 0xC0107A77):
                with fails(errno.ENOTTY):
                    fcntl.ioctl(handle, command, bytes(64))


@check()
def fionread(t: Tree) -> None:
    import termios

    with opened(t.file("f", b"0123456789")) as fd:
        os.lseek(fd, 4, os.SEEK_SET)
        left = bytearray(4)
        fcntl.ioctl(fd, termios.FIONREAD, left)
        assert int.from_bytes(left, "little") == 6


@check()
def poll_is_always_ready(t: Tree) -> None:
    with opened(t.file("f")) as fd:
        poll = select.poll()
        poll.register(fd, select.POLLIN | select.POLLOUT)
        assert poll.poll(0) == [(fd, select.POLLIN | select.POLLOUT)]
        assert select.select([fd], [fd], [], 0)[:2] == ([fd], [fd])
        with select.epoll() as epoll:
            try:
                epoll.register(fd)
            except PermissionError:
                return
            assert t.mirrored  # the kernel lets every file on FUSE be waited for
            assert epoll.poll(0) == [(fd, select.EPOLLIN | select.EPOLLOUT)]


@check()
def sync_of_everything(t: Tree) -> None:
    path = t.file("f", pattern(100000))
    with opened(path) as fd:
        os.pwrite(fd, b"x", 0)
        os.fsync(fd)
        os.pwrite(fd, b"y", 0)
        os.fdatasync(fd)
        syncfs(fd)
        call("sync_file_range", fd, 0, 0, 7)
    with opened(path, os.O_RDONLY) as fd:
        os.fsync(fd)
    with opened(t.path, os.O_RDONLY) as fd:
        os.fsync(fd)
        os.fdatasync(fd)
        syncfs(fd)


@check()
def sync_of_unlinked_file(t: Tree) -> None:
    path = t.file("f")
    with opened(path) as fd:
        path.unlink()
        os.write(fd, b"x")
        os.fsync(fd)


@check()
def fifo_between_processes(t: Tree) -> None:
    os.mkfifo(t / "p")

    def write() -> None:
        with opened(t / "p", os.O_WRONLY) as fd:
            os.write(fd, b"through the pipe")

    writer = Child(write)
    with opened(t / "p", os.O_RDONLY) as fd:
        assert os.read(fd, 100) == b"through the pipe"
    writer.result()
    assert stat.S_ISFIFO((t / "p").lstat().st_mode)


@check()
def unix_socket(t: Tree) -> None:
    here = os.open(t.path, os.O_RDONLY)
    address = f"/proc/self/fd/{here}/s"
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(address)
        server.listen()
        assert stat.S_ISSOCK((t / "s").lstat().st_mode)
        client.connect(address)
        client.sendall(b"hello")
        connection, _ = server.accept()
        with connection:
            assert connection.recv(10) == b"hello"
        with fails(errno.ENXIO):
            os.open(t / "s", os.O_RDWR)
        with socket.socket(socket.AF_UNIX) as second, fails(errno.EADDRINUSE):
            second.bind(address)
    os.close(here)


@check(root=True)
def device_nodes(t: Tree) -> None:
    for name, kind, number in (
        ("null", stat.S_IFCHR, os.makedev(1, 3)),
        ("block", stat.S_IFBLK, os.makedev(7, 200)),
        ("large", stat.S_IFCHR, os.makedev(4000, 1000000)),
    ):
        os.mknod(t / name, kind | 0o640, number)
        status = os.lstat(t / name)
        assert stat.S_IFMT(status.st_mode) == kind
        assert status.st_rdev == number == os.lstat(t.source / name).st_rdev
        os.unlink(t / name)


@check(root=True)
def device_is_not_opened_by_the_daemon(t: Tree) -> None:
    """The kernel opens the device itself, or forbids it where the mount is nodev."""
    os.mknod(t / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    try:
        with opened(t / "null") as fd:
            assert os.write(fd, b"x") == 1
            assert os.read(fd, 1) == b""
    except PermissionError:
        assert t.mirrored


@check()
def program_runs(t: Tree) -> None:
    shutil.copy("/bin/cat", t / "cat")
    got = subprocess.run([t / "cat"], input=b"echo", capture_output=True, check=True)
    assert got.stdout == b"echo"


@check()
def script_runs(t: Tree) -> None:
    t.file("script", b"#!/bin/sh\necho $0 $1\n", mode=0o755)
    got = subprocess.run([t / "script", "x"], capture_output=True, check=True)
    assert got.stdout.decode() == f"{t}/script x\n".replace(str(t), str(t.path))


@check()
def program_without_permission(t: Tree) -> None:
    path = t.file("script", b"#!/bin/sh\n", mode=0o644)
    with fails(errno.EACCES):
        subprocess.run([path])


@check(root=True)
def program_run_by_its_user_only(t: Tree) -> None:
    shutil.copy("/bin/true", t / "true")
    (t / "true").chmod(0o711)
    assert as_user(subprocess.call, [t / "true"]) == 0
    (t / "true").chmod(0o710)
    with fails(errno.EACCES):
        as_user(subprocess.call, [t / "true"])


@check()
def program_in_use(t: Tree) -> None:
    """As in place: most kernels refuse to write what runs and to run what is written."""
    shutil.copy("/bin/sleep", t / "sleep")

    def attempt(path: str) -> list[str]:
        results = []
        process = subprocess.Popen([path, "100"])
        try:
            os.close(os.open(path, os.O_WRONLY))
            results.append("written")
        except OSError as error:
            results.append(errno.errorcode[error.errno or 0])
        finally:
            process.kill()
            process.wait()
        with opened(path, os.O_WRONLY):
            try:
                results.append(str(subprocess.call([path, "0"])))
            except OSError as error:
                results.append(errno.errorcode[error.errno or 0])
        return results

    on_mount = attempt(str(t / "sleep"))
    with opened(t.source / "sleep", os.O_RDONLY) as fd:
        wait_for("the daemon has closed it", lambda: can_lease(fd))
    assert on_mount == attempt(str(t.source / "sleep"))


@check()
def shared_library_loads(t: Tree) -> None:
    import ctypes.util

    name = ctypes.util.find_library("z") or ctypes.util.find_library("m")
    maps = run_child(_library_path, name)
    shutil.copy(maps, t / "lib.so")
    assert run_child(lambda: ctypes.CDLL(str(t / "lib.so")) is not None)


def _library_path(name: str) -> str:
    import ctypes

    ctypes.CDLL(name)
    for line in Path("/proc/self/maps").read_text().splitlines():
        if name.split(".so")[0] in line:
            return line.split()[-1]
    raise AssertionError(f"{name} is not mapped")


@check()
def work_directory_on_it(t: Tree) -> None:
    d = t.directory("d")

    def work() -> list[str]:
        os.chdir(d)
        open("f", "w").close()
        os.rename(d, t / "e")
        open("g", "w").close()
        return [os.getcwd(), *sorted(os.listdir("."))]

    assert run_child(work) == [str(t / "e"), "f", "g"]


@check(root=True)
def chroot_into_it(t: Tree) -> None:
    d = t.directory("d")
    (d / "f").write_bytes(b"x")

    def work() -> list[str]:
        os.chroot(d)
        os.chdir("/")
        return os.listdir("/../..")

    assert run_child(work) == ["f"]


@check()
def inotify_tells_of_changes(t: Tree) -> None:
    fd = call("inotify_init1", os.O_NONBLOCK)
    try:
        call("inotify_add_watch", fd, os.fsencode(t.path), 0x00000100 | 0x00000200)
        t.file("f")
        os.unlink(t / "f")
        events = os.read(fd, 4096)
        assert events.count(b"f\0") == 2
    finally:
        os.close(fd)


@check()
def name_to_handle(t: Tree) -> None:
    """File handles, where the filesystem gives them, lead back to the file."""
    import ctypes

    path = t.file("f", b"x")
    handle = ctypes.create_string_buffer(b"\x80\0\0\0" + bytes(132), 136)
    mount_id = ctypes.c_int()
    try:
        call("name_to_handle_at", -100, os.fsencode(path), handle, ctypes.byref(mount_id), 0)
    except OSError as error:
        assert error.errno == errno.EOPNOTSUPP and t.mirrored
        return
    if os.geteuid() == 0:
        with opened(t.path, os.O_RDONLY) as directory:
            fd = call("open_by_handle_at", directory, handle, os.O_RDONLY)
        assert os.read(fd, 9) == b"x"
        os.close(fd)
