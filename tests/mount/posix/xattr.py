"""Extended attributes."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

from ..linux import call, opened
from . import USER, Tree, as_user, check, fails, pattern


@check()
def xattr_set_get_list_remove(t: Tree) -> None:
    path = t.file("f")
    os.setxattr(path, "user.a", b"1")
    os.setxattr(path, "user.b", b"")
    assert os.getxattr(path, "user.a") == os.getxattr(t.source / "f", "user.a") == b"1"
    assert os.getxattr(path, "user.b") == b""
    assert sorted(os.listxattr(path)) == ["user.a", "user.b"]
    os.setxattr(path, "user.a", b"longer value")
    assert os.getxattr(path, "user.a") == b"longer value"
    os.removexattr(path, "user.a")
    assert os.listxattr(path) == ["user.b"]


@check()
def xattr_missing(t: Tree) -> None:
    path = t.file("f")
    with fails(errno.ENODATA):
        os.getxattr(path, "user.none")
    with fails(errno.ENODATA):
        os.removexattr(path, "user.none")
    assert os.listxattr(path) == []


@check()
def xattr_create_and_replace(t: Tree) -> None:
    path = t.file("f")
    with fails(errno.ENODATA):
        os.setxattr(path, "user.a", b"1", os.XATTR_REPLACE)
    os.setxattr(path, "user.a", b"1", os.XATTR_CREATE)
    with fails(errno.EEXIST):
        os.setxattr(path, "user.a", b"2", os.XATTR_CREATE)
    os.setxattr(path, "user.a", b"3", os.XATTR_REPLACE)
    assert os.getxattr(path, "user.a") == b"3"


@check()
def xattr_binary_values(t: Tree) -> None:
    path = t.file("f")
    every = bytes(range(256)) * 4
    os.setxattr(path, "user.bytes", every)
    assert os.getxattr(path, "user.bytes") == every


@check()
def xattr_of_many_names(t: Tree) -> None:
    path = t.file("f")
    names = [f"user.name{at:03}" for at in range(60)]
    for name in names:
        os.setxattr(path, name, name.encode())
    assert sorted(os.listxattr(path)) == names
    assert all(os.getxattr(path, name) == name.encode() for name in names)


@check()
def xattr_too_large(t: Tree) -> None:
    path = t.file("f")
    with fails(errno.E2BIG):
        os.setxattr(path, "user.a", bytes(65537))
    with fails(errno.ERANGE):
        os.setxattr(path, "user." + "n" * 251, b"x")
    os.setxattr(path, "user." + "n" * 250, b"x")
    assert os.listxattr(path) == ["user." + "n" * 250]


@check()
def xattr_larger_than_a_block(t: Tree) -> None:
    """What ext4 has no room for is ENOSPC there and here."""
    t.file("f")

    def code(path: Path) -> int:
        try:
            os.setxattr(path, "user.a", pattern(10000))
        except OSError as error:
            return error.errno or 0
        return 0

    wanted = code(t.source / "f")
    assert code(t / "f") == wanted


@check()
def xattr_buffers(t: Tree) -> None:
    path = os.fsencode(t.file("f"))
    os.setxattr(path, "user.a", b"0123456789")
    buffer = ctypes.create_string_buffer(10)
    size = ctypes.c_size_t
    assert call("getxattr", path, b"user.a", None, size(0)) == 10
    assert call("getxattr", path, b"user.a", buffer, size(10)) == 10
    with fails(errno.ERANGE):
        call("getxattr", path, b"user.a", buffer, size(9))
    assert call("listxattr", path, None, size(0)) == len(b"user.a\0")
    with fails(errno.ERANGE):
        call("listxattr", path, buffer, size(3))


@check()
def xattr_namespaces_unknown(t: Tree) -> None:
    path = t.file("f")
    for name in ("nonsense", "nonsense.a", "system.a"):
        with fails(errno.EOPNOTSUPP):
            os.setxattr(path, name, b"x")
        with fails(errno.EOPNOTSUPP):
            os.getxattr(path, name)


@check()
def xattr_name_without_end(t: Tree) -> None:
    path = t.file("f")
    with fails(errno.EINVAL):
        os.setxattr(path, "user.", b"x")


@check(root=True)
def xattr_trusted_and_security(t: Tree) -> None:
    path = t.file("f")
    os.setxattr(path, "trusted.a", b"t")
    os.setxattr(path, "security.a", b"s")
    assert sorted(os.listxattr(path)) == ["security.a", "trusted.a"]
    with fails(errno.ENODATA, errno.EPERM):
        as_user(os.getxattr, path, "trusted.a")
    assert as_user(os.getxattr, path, "security.a") == b"s"
    assert as_user(os.listxattr, path) == ["security.a"]
    os.removexattr(path, "trusted.a")
    os.removexattr(path, "security.a")
    assert os.listxattr(path) == []


@check(root=True)
def xattr_trusted_by_others(t: Tree) -> None:
    path = t.file("f", owner=USER)
    for name in ("trusted.a", "security.a"):
        with fails(errno.EPERM):
            as_user(os.setxattr, path, name, b"x")


@check(root=True)
def xattr_on_symlink(t: Tree) -> None:
    os.symlink("nowhere", t / "s")
    os.setxattr(t / "s", "trusted.a", b"x", follow_symlinks=False)
    assert os.getxattr(t / "s", "trusted.a", follow_symlinks=False) == b"x"
    assert os.listxattr(t / "s", follow_symlinks=False) == ["trusted.a"]
    with fails(errno.EPERM):
        os.setxattr(t / "s", "user.a", b"x", follow_symlinks=False)
    with fails(errno.ENOENT):
        os.setxattr(t / "s", "trusted.a", b"x")


@check()
def xattr_on_directory(t: Tree) -> None:
    d = t.directory("d")
    os.setxattr(d, "user.a", b"x")
    assert os.listxattr(d) == ["user.a"]
    (d / "f").write_bytes(b"")
    assert os.listxattr(d / "f") == []


@check()
def xattr_on_special_file(t: Tree) -> None:
    os.mkfifo(t / "p")
    with fails(errno.EPERM):
        os.setxattr(t / "p", "user.a", b"x")


@check()
def xattr_by_descriptor(t: Tree) -> None:
    path = t.file("f")
    with opened(path) as fd:
        os.setxattr(fd, "user.a", b"x")
        path.unlink()
        assert os.getxattr(fd, "user.a") == b"x"
        os.setxattr(fd, "user.b", b"y")
        assert sorted(os.listxattr(fd)) == ["user.a", "user.b"]
        os.removexattr(fd, "user.a")


@check()
def xattr_survives_rename_and_links(t: Tree) -> None:
    path = t.file("f")
    os.setxattr(path, "user.a", b"x")
    os.link(path, t / "l")
    path.rename(t / "g")
    assert os.getxattr(t / "g", "user.a") == os.getxattr(t / "l", "user.a") == b"x"


@check()
def xattr_set_in_place_is_seen(t: Tree) -> None:
    t.file("f")
    assert os.listxattr(t / "f") == []
    os.setxattr(t.source / "f", "user.a", b"x")
    assert os.getxattr(t / "f", "user.a") == b"x"
    os.removexattr(t.source / "f", "user.a")
    with fails(errno.ENODATA):
        os.getxattr(t / "f", "user.a")


@check(root=True)
def xattr_of_unreadable_file(t: Tree) -> None:
    path = t.file("f", mode=0o600)
    os.setxattr(path, "user.a", b"x")
    with fails(errno.EACCES):
        as_user(os.getxattr, path, "user.a")
    path.chmod(0o444)
    assert as_user(os.getxattr, path, "user.a") == b"x"
    with fails(errno.EACCES):
        as_user(os.setxattr, path, "user.a", b"y")
