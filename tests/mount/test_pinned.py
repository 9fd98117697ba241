"""Pinned files and policies: what is read is the source, whoever changes it and how; what is asked
for and cannot be is refused with the reason; and memory comes back."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .conftest import Starter
from .harness import Mode, Mount, why_not
from .linux import wait_for

KERNEL = Mode("kernel", "dev")
SMALL, LARGE = 10_000, 3 * (1 << 20) + 777  # loaded by the open itself; by the thread

pytestmark = pytest.mark.skipif(bool(why_not(KERNEL)), reason=str(why_not(KERNEL)))


def content(size: int, seed: int = 0) -> bytes:
    """Bytes that differ from page to page."""
    words = b"".join(b"%07x%d" % (i, seed) for i in range(size // 8 + 1))
    return words[:size]


def pins(mount: Mount) -> dict[str, Any]:
    return {pin["path"]: pin for pin in mount.status()["pins"]["list"]}


def wait_state(mount: Mount, path: str, state: str) -> None:
    wait_for(f"{path} is {state}", lambda: pins(mount).get(path, {}).get("state") == state)


def pinned(mount: Mount, path: str) -> None:
    """Pins a file, and waits until it is loaded."""
    assert mount.pin(path)[0]["state"] in ("loading", "pinned")
    wait_state(mount, path, "pinned")


def served(mount: Mount) -> dict[str, int]:
    """Open files, by engine."""
    engines = mount.status()["engines"]
    return {name: engine["open_files"] for name, engine in engines.items()}


@contextlib.contextmanager
def opened(path: Path, flags: int = os.O_RDONLY) -> Iterator[int]:
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


def direct(fd: int, at: int, size: int) -> bytes:
    with mmap.mmap(-1, size) as buffer:
        got = os.preadv(fd, [buffer], at)
        return buffer[:got]


def wait_closed(mount: Mount) -> None:
    wait_for("all files are released", lambda: not any(served(mount).values()))


@pytest.fixture
def a_file(mount: Callable[..., Mount]) -> tuple[Mount, Path, Path]:
    """A mount in each mode, and a pinned file `f`: (mount, in the mount, in the source)."""
    made = mount()
    source = made.source / "f"
    source.write_bytes(content(LARGE))
    pinned(made, "f")
    return made, made.path / "f", source


def test_reads_are_right(a_file: tuple[Mount, Path, Path]) -> None:
    mount, path, _ = a_file
    want = content(LARGE)
    with opened(path) as fd, opened(path, os.O_RDONLY | os.O_DIRECT) as straight:
        assert served(mount) == {"kernel": 0, "pool": 0, "buffered": 0, "pinned": 2}
        assert os.pread(fd, LARGE + 1, 0) == want
        for at in (0, 4096, 1 << 20, LARGE // 4096 * 4096, LARGE + 4096):
            assert direct(straight, at, 8192) == want[at : at + 8192]
        assert os.lseek(fd, 0, os.SEEK_END) == LARGE == os.fstat(fd).st_size
        with mmap.mmap(fd, LARGE, prot=mmap.PROT_READ) as view:
            assert view[:] == want
    assert mount.stats()["bytes_read"] == 0


def test_reads_do_not_touch_the_source(a_file: tuple[Mount, Path, Path]) -> None:
    _, path, source = a_file
    before = source.stat()
    os.utime(source, ns=(1, before.st_mtime_ns))
    with opened(path) as fd:  # the utime was a change: it is loaded again
        os.pread(fd, 1, 0)
    wait_for("it is pinned again", lambda: path.read_bytes() == content(LARGE))
    os.utime(source, ns=(1, before.st_mtime_ns))


def test_write_to_what_is_read_is_refused(a_file: tuple[Mount, Path, Path]) -> None:
    _, path, source = a_file
    with opened(path) as fd:
        for flags in (os.O_RDWR, os.O_WRONLY, os.O_WRONLY | os.O_TRUNC, os.O_RDONLY | os.O_TRUNC):
            with pytest.raises(OSError) as failed:
                os.close(os.open(path, flags))
            assert failed.value.errno == errno.ETXTBSY
        with pytest.raises(OSError) as failed:
            os.truncate(path, 1)
        assert failed.value.errno == errno.ETXTBSY
        assert os.pread(fd, LARGE, 0) == content(LARGE) == source.read_bytes()
        with pytest.raises(PermissionError):
            mmap.mmap(fd, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE)


def test_write_through_the_mount(a_file: tuple[Mount, Path, Path]) -> None:
    mount, path, source = a_file
    want = bytearray(content(LARGE))
    with opened(path, os.O_RDWR) as fd, opened(path) as reader:
        assert served(mount)["pinned"] == 0
        assert pins(mount)["f"]["state"] == "waiting"
        assert os.pwrite(fd, b"changed", 5000) == 7
        want[5000:5007] = b"changed"
        assert os.pread(reader, LARGE, 0) == want == source.read_bytes()
    wait_state(mount, "f", "pinned")
    with opened(path) as fd:
        assert served(mount)["pinned"] == 1
        assert os.pread(fd, LARGE, 0) == want
    with opened(path, os.O_WRONLY | os.O_APPEND) as fd:
        os.write(fd, b"the end")
    assert path.read_bytes() == want + b"the end" == source.read_bytes()
    wait_state(mount, "f", "pinned")
    assert path.read_bytes() == want + b"the end"


def test_a_write_right_after_a_read(start: Starter) -> None:
    """The daemon hears of a close after it has returned: nobody must notice."""
    mount = start(KERNEL, "--pin", "*")
    path = mount.path / "f"
    for turn in range(200):
        path.write_bytes(content(SMALL, turn))
        assert path.read_bytes() == content(SMALL, turn)


def test_truncate(a_file: tuple[Mount, Path, Path]) -> None:
    mount, path, source = a_file
    for size in (LARGE // 2, 5, 0, 1 << 20):
        want = source.read_bytes()[:size].ljust(size, b"\0")
        os.truncate(path, size)
        assert path.read_bytes() == want == source.read_bytes()
        wait_state(mount, "f", "pinned")
        assert path.read_bytes() == want
    with opened(path, os.O_WRONLY | os.O_TRUNC) as fd:
        os.write(fd, b"new")
    wait_state(mount, "f", "pinned")
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_source_changes_behind(mount: Callable[..., Mount], size: int) -> None:
    made = mount()
    source, path = made.source / "f", made.path / "f"
    source.write_bytes(content(size))
    pinned(made, "f")
    for seed, new in ((1, size), (2, size // 2), (3, size + 4096)):
        source.write_bytes(content(new, seed))
        assert path.read_bytes() == content(new, seed)  # whoever serves it
        wait_closed(made)
        wait_state(made, "f", "pinned")
        with opened(path) as old:
            assert served(made)["pinned"] == 1
            changed = content(new, seed + 3)
            source.write_bytes(changed)
            with opened(path) as fd:  # and the one that was open sees what the new one sees
                assert os.pread(fd, size * 2, 0) == changed == os.pread(old, size * 2, 0)
        wait_closed(made)


def test_change_that_keeps_size_and_mtime(a_file: tuple[Mount, Path, Path]) -> None:
    _, path, source = a_file
    stat = source.stat()
    with source.open("r+b") as file:
        file.write(b"other")
    os.utime(source, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.read_bytes()[:8] == b"other" + content(8)[5:]


def test_a_granted_lock_shows_what_was_written(a_file: tuple[Mount, Path, Path]) -> None:
    mount, path, source = a_file
    with opened(path) as fd:
        with source.open("r+b") as file:
            file.write(b"under the lock")
        fcntl.lockf(fd, fcntl.LOCK_SH)
        assert served(mount)["pinned"] == 1
        assert os.pread(fd, 14, 0) == b"under the lock"


def test_unlink_and_rename_over(a_file: tuple[Mount, Path, Path]) -> None:
    mount, path, _ = a_file
    with opened(path) as fd:
        path.unlink()
        assert os.pread(fd, LARGE, 0) == content(LARGE)
        path.write_bytes(b"another")
        assert path.read_bytes() == b"another"
    wait_for("its memory is free", lambda: mount.status()["pins"]["used"] == 0)
    pinned(mount, "f")
    (mount.path / "g").write_bytes(b"third")
    (mount.path / "g").rename(path)
    assert path.read_bytes() == b"third"
    wait_for("its pin is gone", lambda: not pins(mount))


def test_unpin_gives_the_memory_back(a_file: tuple[Mount, Path, Path]) -> None:
    mount, path, _ = a_file
    before = memory(mount.pid)
    assert before >= LARGE
    with opened(path) as fd:
        (entry,) = mount.pin("f", verb="unpin")
        assert entry["state"] == "unpinning"
        assert os.pread(fd, LARGE, 0) == content(LARGE)
        with opened(path) as second:
            assert os.pread(second, 8, 0) == content(8)
    wait_for("its memory is free", lambda: mount.status()["pins"]["used"] == 0)
    assert memory(mount.pid) == 0
    wait_closed(mount)
    assert path.read_bytes() == content(LARGE)
    assert not pins(mount)
    (entry,) = mount.pin("f", verb="unpin")
    assert (entry["state"], entry["reason"]) == ("refused", "not pinned")


def memory(pid: int) -> int:
    """Bytes in the memfds of pinned files."""
    total = 0
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if "zcfs-pinned" in os.readlink(fd):
                total += fd.stat().st_blocks * 512
    return total


def test_pin_again_while_it_leaves(a_file: tuple[Mount, Path, Path]) -> None:
    mount, path, _ = a_file
    with opened(path):
        mount.pin("f", verb="unpin")
        mount.pin("f")
    wait_closed(mount)
    assert pins(mount)["f"]["state"] == "pinned"


def test_over_the_limit(start: Starter) -> None:
    mount = start(KERNEL, "--pin-size", "4M", "--pin", "*")
    (mount.source / "large").write_bytes(content(LARGE))
    (mount.source / "more").write_bytes(content(LARGE, 1))
    pinned(mount, "large")
    (entry,) = mount.pin("more")
    assert entry["state"] == "refused"
    assert str(LARGE) in entry["reason"]
    assert "--pin-size 4194304" in entry["reason"]
    with opened(mount.path / "more") as fd:
        assert served(mount)["kernel"] == 1
        assert os.pread(fd, LARGE, 0) == content(LARGE, 1)
    assert mount.status()["pins"]["used"] <= 4 << 20
    mount.pin("large", verb="unpin")
    pinned(mount, "more")


def test_grows_over_the_limit_behind(start: Starter) -> None:
    mount = start(KERNEL, "--pin-size", "4M")
    source, path = mount.source / "f", mount.path / "f"
    source.write_bytes(content(LARGE))
    pinned(mount, "f")
    with opened(path) as fd:
        source.write_bytes(content(5 << 20, 1))
        with pytest.raises(OSError) as failed:
            os.close(os.open(path, os.O_RDONLY))
        assert failed.value.errno == errno.ETXTBSY
        assert os.pread(fd, 1, 0)
    wait_closed(mount)
    assert path.read_bytes() == content(5 << 20, 1)
    assert pins(mount)["f"]["state"] == "refused"


def test_what_cannot_be_pinned(start: Starter) -> None:
    mount = start(KERNEL)
    (mount.source / "d").mkdir()
    (mount.source / "f").write_bytes(b"f")
    (mount.source / "link").symlink_to("f")
    os.mkfifo(mount.source / "fifo")
    paths = {
        "nowhere": "No such file", "d": "directory", "link": "symbolic link", "../f": "regular",
        "fifo": "regular", "d/../f": "regular", "f/x": "Not a directory", ".": "regular",
        "x" * 300: "too long", "/f": "regular",
    }  # fmt: skip
    for entry, (path, reason) in zip(mount.pin(*paths), paths.items(), strict=True):
        assert (entry["path"], entry["state"]) == (path, "refused")
        assert reason in entry["reason"]
    assert mount.status()["pins"]["files"] == 0


def test_pin_of_what_is_open(start: Starter) -> None:
    mount = start(KERNEL)
    source, path = mount.source / "f", mount.path / "f"
    source.write_bytes(content(LARGE))
    with opened(path, os.O_RDWR) as fd:
        assert mount.pin("f")[0]["state"] == "waiting"
        os.pwrite(fd, b"new", 0)
    wait_state(mount, "f", "pinned")
    assert path.read_bytes()[:3] == b"new"
    mount.pin("f", verb="unpin")
    wait_closed(mount)
    with opened(path) as fd:
        pinned(mount, "f")
        assert served(mount)["kernel"] == 1
        os.truncate(path, 3)  # nobody reads it pinned
        assert os.pread(fd, 9, 0) == b"new"


def test_pin_glob(start: Starter) -> None:
    mount = start(KERNEL, "--pin", "hot/**/*.db")
    for name in ("hot/a.db", "hot/x/y/b.db", "hot/a.txt", "cold/a.db"):
        path = mount.source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content(SMALL))
        os.stat(mount.path / name)
    assert not pins(mount)  # a look is no open
    for name, engine in (("hot/a.db", "pinned"), ("hot/x/y/b.db", "pinned"),
                         ("hot/a.txt", "kernel"), ("cold/a.db", "kernel")):  # fmt: skip
        with opened(mount.path / name) as fd:
            assert served(mount)[engine] == 1
            assert os.pread(fd, SMALL, 0) == content(SMALL)
        wait_closed(mount)
    assert set(pins(mount)) == {"hot/a.db", "hot/x/y/b.db"}
    mount.pin("hot/a.db", verb="unpin")
    with opened(mount.path / "hot/a.db"):
        assert served(mount)["kernel"] == 1  # by hand stays by hand


def test_policies(start: Starter) -> None:
    mount = start(
        KERNEL, "--policy", "a/*.db=pool", "-o", "policy=**/*.db=buffered",
        "--policy", "p/**=pinned", "--policy", "**/none=kernel",
    )  # fmt: skip
    want = {
        "a/x.db": "pool", "a/b/x.db": "buffered", "x.db": "buffered", "x": "kernel",
        "p/x.db": "buffered", "p/q/x": "pinned", "p/none": "pinned", "q/none": "kernel",
    }  # fmt: skip
    for name in want:
        path = mount.source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content(SMALL))
    for name, engine in want.items():
        with opened(mount.path / name) as fd:
            assert {key for key, count in served(mount).items() if count} == {engine}, name
            assert os.pread(fd, SMALL, 0) == content(SMALL)
        wait_closed(mount)
    status = mount.status()
    assert status["policies"][:2] == [
        {"glob": "a/*.db", "engine": "pool"}, {"glob": "**/*.db", "engine": "buffered"},
    ]  # fmt: skip


def test_policy_follows_the_name(start: Starter) -> None:
    mount = start(KERNEL, "--policy", "*.db=pool", "--policy", "d/*=buffered")
    (mount.path / "d").mkdir()
    plain, named = mount.path / "f", mount.path / "f.db"
    with opened(plain, os.O_RDWR | os.O_CREAT) as fd:
        assert served(mount)["kernel"] == 1
        plain.rename(named)
        with opened(named) as second:  # it is open: the engine stays
            assert served(mount)["kernel"] == 2
            os.write(fd, b"both")
            assert os.pread(second, 9, 0) == b"both"
    wait_closed(mount)
    with opened(named, os.O_RDWR) as fd:
        assert served(mount)["pool"] == 1
    wait_closed(mount)
    os.link(named, mount.path / "d/f")
    with opened(mount.path / "d/f") as fd:
        assert served(mount)["buffered"] == 1
        assert os.pread(fd, 9, 0) == b"both"
    wait_closed(mount)
    with opened(mount.path / "new.db", os.O_RDWR | os.O_CREAT) as fd:
        assert served(mount)["pool"] == 1


def test_small_files_of_a_policy_are_pinned_by_their_first_open(start: Starter) -> None:
    mount = start(Mode("buffered", "dev"), "--policy", "**=pinned")
    path = mount.path / "f"
    path.write_bytes(content(SMALL))
    wait_closed(mount)
    with opened(path) as fd:
        assert served(mount)["pinned"] == 1
        assert os.pread(fd, SMALL, 0) == content(SMALL)
    wait_closed(mount)
    path.write_bytes(b"other")
    assert path.read_bytes() == b"other"


def test_everything_at_once(mount: Callable[..., Mount]) -> None:
    """Opens of every kind while files are pinned, unpinned, changed behind and replaced: ETXTBSY is
    allowed, and ESTALE for what is replaced between the look at its name and the open; what is in
    the files at the end is what is read."""
    made = mount("--pin", "f0", "--policy", "f1=pinned")
    names = ["f0", "f1", "f2"]
    for name in names:
        (made.source / name).write_bytes(content(200_000))
    wrong: list[str] = []
    end = time.monotonic() + 2

    def work(seed: int) -> None:
        chance = random.Random(seed)
        while time.monotonic() < end and not wrong:
            name = chance.choice(names)
            path = made.path / name
            try:
                act(chance.randrange(7), name, path, chance)
            except OSError as error:
                if error.errno not in (errno.ETXTBSY, errno.ENOENT, errno.ESTALE):
                    wrong.append(f"{name}: {error}")

    def act(what: int, name: str, path: Path, chance: random.Random) -> None:
        if what < 2:
            with opened(path) as fd, opened(path):
                os.pread(fd, 4096, chance.randrange(200_000))
        elif what == 2:
            with opened(path, os.O_RDWR) as fd:
                os.pwrite(fd, b"w" * 100, chance.randrange(200_000))
        elif what == 3:
            os.truncate(path, chance.randrange(1, 300_000))
        elif what == 4:
            (made.source / name).write_bytes(content(chance.randrange(1, 300_000)))
        elif what == 5:
            made.pin(name, verb=chance.choice(["pin", "unpin"]))
        else:
            other = made.path / f"new-{threading.get_ident()}"
            other.write_bytes(content(chance.randrange(1, 200_000)))
            other.rename(path)

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong
    wait_closed(made)
    for name in names:
        assert (made.path / name).read_bytes() == (made.source / name).read_bytes()
    wait_closed(made)
    for name in list(pins(made)):
        made.pin(name, verb="unpin")
    wait_for("all memory is free", lambda: made.status()["pins"]["used"] == 0)
    assert memory(made.pid) == 0


def test_loads_while_files_are_opened_and_written(start: Starter) -> None:
    """What a reader has is never older than what was written before it opened the file."""
    mount = start(KERNEL, "--pin", "*")
    path = mount.path / "f"
    for turn in range(200):
        size = SMALL if turn % 3 else 300_000
        want = content(size, turn)
        target = path if turn % 2 else mount.source / "f"
        target.write_bytes(want)
        if turn % 7 == 0:
            mount.pin("f", verb="unpin" if turn % 2 else "pin")
        assert path.read_bytes() == want, turn
