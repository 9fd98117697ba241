"""POSIX access control lists, as raw extended attributes."""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path

from . import OTHER, TEAM, USER, Tree, as_user, check, fails, mode_of

ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
USER_OBJ, NAMED_USER, GROUP_OBJ, NAMED_GROUP, MASK, REST = 1, 2, 4, 8, 16, 32
Acl = list[tuple[int, int, int]]
NOBODY = 0xFFFFFFFF


def acl(*entries: tuple[int, int] | tuple[int, int, int]) -> bytes:
    """(tag, permissions) or (tag, permissions, id), in the order of the tags."""
    packed = [
        struct.pack("<HHI", *(entry if len(entry) == 3 else (*entry, NOBODY))) for entry in entries
    ]
    return struct.pack("<I", 2) + b"".join(packed)


def simple(user: int, named: int, group: int, mask: int, rest: int) -> bytes:
    """A list that names USER."""
    return acl(
        (USER_OBJ, user), (NAMED_USER, named, USER), (GROUP_OBJ, group), (MASK, mask), (REST, rest)
    )


@check()
def acl_set_and_get(t: Tree) -> None:
    path = t.file("f", mode=0o600)
    wanted = simple(6, 4, 0, 4, 0)
    os.setxattr(path, ACCESS, wanted)
    assert os.getxattr(path, ACCESS) == wanted
    assert os.getxattr(t.source / "f", ACCESS) == wanted
    assert ACCESS in os.listxattr(path)
    assert mode_of(path) == 0o640  # the group bits show the mask


@check()
def acl_none(t: Tree) -> None:
    path = t.file("f")
    with fails(errno.ENODATA):
        os.getxattr(path, ACCESS)
    with fails(errno.ENODATA):
        os.getxattr(t.path, DEFAULT)
    assert os.listxattr(path) == []


@check()
def acl_set_in_place_is_seen(t: Tree) -> None:
    t.file("f", mode=0o600)
    os.setxattr(t.source / "f", ACCESS, simple(6, 4, 0, 4, 0))
    assert os.getxattr(t / "f", ACCESS) == simple(6, 4, 0, 4, 0)


@check(root=True)
def acl_grants_a_named_user(t: Tree) -> None:
    path = t.file("f", b"x", mode=0o600)
    with fails(errno.EACCES):
        as_user(path.read_bytes)
    os.setxattr(path, ACCESS, simple(6, 4, 0, 4, 0))
    assert as_user(path.read_bytes) == b"x"
    with fails(errno.EACCES):
        as_user(path.write_bytes, b"y")
    with fails(errno.EACCES):
        as_user(path.read_bytes, uid=OTHER)


@check(root=True)
def acl_denies_a_named_user(t: Tree) -> None:
    path = t.file("f", b"x", mode=0o644)
    os.setxattr(path, ACCESS, simple(6, 0, 4, 4, 4))
    with fails(errno.EACCES):
        as_user(path.read_bytes)
    assert as_user(path.read_bytes, uid=OTHER) == b"x"


@check(root=True)
def acl_mask_limits(t: Tree) -> None:
    path = t.file("f", b"x", mode=0o600)
    os.setxattr(path, ACCESS, simple(6, 6, 0, 4, 0))
    assert as_user(path.read_bytes) == b"x"
    with fails(errno.EACCES):
        as_user(path.write_bytes, b"y")
    path.chmod(0o660)
    as_user(path.write_bytes, b"y")
    path.chmod(0o600)
    with fails(errno.EACCES):
        as_user(path.read_bytes)
    assert os.getxattr(path, ACCESS) == simple(6, 6, 0, 0, 0)


@check(root=True)
def acl_grants_a_named_group(t: Tree) -> None:
    path = t.file("f", b"x", mode=0o600)
    os.setxattr(
        path,
        ACCESS,
        acl((USER_OBJ, 6), (GROUP_OBJ, 0), (NAMED_GROUP, 4, TEAM), (MASK, 4), (REST, 0)),
    )
    with fails(errno.EACCES):
        as_user(path.read_bytes)
    assert as_user(path.read_bytes, groups=(TEAM,)) == b"x"


@check(root=True)
def acl_on_directory_grants_creation(t: Tree) -> None:
    d = t.directory("d", mode=0o700)
    os.setxattr(d, ACCESS, simple(7, 7, 0, 7, 0))
    as_user((d / "f").write_bytes, b"x")
    assert (d / "f").stat().st_uid == USER


@check()
def acl_equal_to_mode_is_no_acl(t: Tree) -> None:
    path = t.file("f", mode=0o600)
    os.setxattr(path, ACCESS, acl((USER_OBJ, 6), (GROUP_OBJ, 4), (REST, 0)))
    assert mode_of(path) == 0o640
    assert os.listxattr(path) == []


@check()
def acl_remove(t: Tree) -> None:
    path = t.file("f", mode=0o600)
    os.setxattr(path, ACCESS, simple(6, 4, 0, 4, 0))
    os.removexattr(path, ACCESS)
    with fails(errno.ENODATA):
        os.getxattr(path, ACCESS)


@check()
def acl_default_is_inherited(t: Tree) -> None:
    d = t.directory("d")
    default = simple(7, 6, 5, 7, 0)
    os.setxattr(d, DEFAULT, default)
    (d / "f").write_bytes(b"")
    (d / "sub").mkdir()
    assert os.getxattr(d / "sub", DEFAULT) == default
    assert os.getxattr(d / "sub", ACCESS) == default
    assert os.getxattr(d / "f", ACCESS) == simple(6, 6, 5, 6, 0)
    with fails(errno.ENODATA):
        os.getxattr(d / "f", DEFAULT)
    with fails(errno.ENODATA):
        os.getxattr(d, ACCESS)


def _create(path: Path, mode: int, umask: int) -> int:
    before = os.umask(umask)
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))
    finally:
        os.umask(before)
    return mode_of(path)


@check()
def acl_default_replaces_umask(t: Tree) -> None:
    plain, listed = t.directory("plain"), t.directory("listed")
    os.setxattr(listed, DEFAULT, simple(7, 7, 7, 7, 5))
    assert _create(plain / "f", 0o666, 0o077) == 0o600
    assert _create(listed / "f", 0o666, 0o077) == 0o664
    assert _create(listed / "g", 0o600, 0) == 0o600


@check()
def acl_default_without_names_replaces_umask(t: Tree) -> None:
    d = t.directory("d")
    os.setxattr(d, DEFAULT, acl((USER_OBJ, 7), (GROUP_OBJ, 5), (REST, 1)))
    assert _create(d / "f", 0o666, 0o777) == 0o640
    assert os.listxattr(d / "f") == []
    before = os.umask(0o777)
    try:
        (d / "sub").mkdir()
        os.mkfifo(d / "p")
    finally:
        os.umask(before)
    assert mode_of(d / "sub") == 0o751
    assert mode_of(d / "p") == 0o640


@check(root=True)
def acl_default_applies_to_other_makers(t: Tree) -> None:
    d = t.directory("d", mode=0o777)
    os.setxattr(d, DEFAULT, simple(7, 6, 4, 6, 0))
    as_user((d / "f").write_bytes, b"x", uid=OTHER, gid=OTHER)
    assert (d / "f").stat().st_uid == OTHER
    assert os.getxattr(d / "f", ACCESS) == simple(6, 6, 4, 6, 0)
    as_user((d / "f").write_bytes, b"y")


@check()
def acl_default_on_tmpfile(t: Tree) -> None:
    from ..linux import opened

    d = t.directory("d")
    os.setxattr(d, DEFAULT, simple(7, 6, 5, 7, 0))
    with opened(d, os.O_TMPFILE | os.O_RDWR, 0o666) as fd:
        assert os.getxattr(fd, ACCESS) == simple(6, 6, 5, 6, 0)


@check()
def acl_default_only_on_directories(t: Tree) -> None:
    path = t.file("f")
    with fails(errno.EACCES):
        os.setxattr(path, DEFAULT, simple(7, 7, 7, 7, 7))


@check()
def acl_malformed(t: Tree) -> None:
    path = t.file("f")
    twice = acl((USER_OBJ, 6), (USER_OBJ, 6), (GROUP_OBJ, 4), (REST, 4))
    no_mask = acl((USER_OBJ, 6), (NAMED_USER, 4, USER), (GROUP_OBJ, 4), (REST, 4))
    for bad in (b"\2\0\0\0\1", twice, no_mask):
        with fails(errno.EINVAL):
            os.setxattr(path, ACCESS, bad)
    with fails(errno.EOPNOTSUPP):
        os.setxattr(path, ACCESS, b"\1\0\0\0")


@check()
def acl_on_symlink(t: Tree) -> None:
    os.symlink("nowhere", t / "s")
    with fails(errno.EOPNOTSUPP):
        os.setxattr(t / "s", ACCESS, simple(7, 7, 7, 7, 7), follow_symlinks=False)


@check(root=True)
def acl_by_others_is_refused(t: Tree) -> None:
    path = t.file("f", mode=0o666)
    for change in (
        lambda: os.setxattr(path, ACCESS, simple(7, 7, 7, 7, 7)),
        lambda: os.removexattr(path, ACCESS),
    ):
        with fails(errno.EPERM):
            as_user(change)


@check(root=True)
def acl_by_owner_outside_the_group_drops_setgid(t: Tree) -> None:
    path = t.file("f", mode=0o2755, owner=USER, group=TEAM)
    as_user(os.setxattr, path, ACCESS, simple(7, 5, 5, 5, 5))
    assert mode_of(path) == 0o755
    path.chmod(0o2755)
    as_user(os.setxattr, path, ACCESS, simple(7, 5, 5, 5, 5), groups=(TEAM,))
    assert mode_of(path) == 0o2755


@check()
def acl_of_many_entries(t: Tree) -> None:
    path = t.file("f")
    named = [(NAMED_USER, 4, 1000 + at) for at in range(200)]
    wanted = acl((USER_OBJ, 6), *named, (GROUP_OBJ, 4), (MASK, 4), (REST, 4))
    os.setxattr(path, ACCESS, wanted)
    assert os.getxattr(path, ACCESS) == wanted


@check()
def acl_changes_ctime(t: Tree) -> None:
    from ..linux import tick

    path = t.file("f")
    before = path.stat().st_ctime_ns
    tick()
    os.setxattr(path, ACCESS, simple(6, 4, 0, 4, 0))
    assert path.stat().st_ctime_ns > before
