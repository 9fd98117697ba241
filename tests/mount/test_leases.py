"""Page leases: what another process borrows of the pool, what it may not, and what it leaves behind."""

from __future__ import annotations

import gc
import mmap
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from zcfs.errors import DaemonError, ZcfsError
from zcfs.leases import LeaseClient, LeasedFile, LeasedPage, attach
from zcfs.pool import BorrowError, PoolUsageError

from . import harness
from .harness import Mode, Mount, runtime_dir
from .linux import PATIENCE, child, run_child, wait_for
from .posix import pattern
from .test_life import dev_fuse_for_users

pytestmark = pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="needs FUSE")

MIB = 1 << 20
ROOT = Path(__file__).resolve().parents[2]
NOBODY = 65534
SIZE = 2 * MIB - 100
CONTENT = pattern(SIZE)


@pytest.fixture(params=["dev", "uring"])
def mounted(request: pytest.FixtureRequest, start: Callable[..., Mount]) -> Mount:
    """A mount with a small pool, and a file `data` in it."""
    from .conftest import require

    made = start(require(Mode("pool", request.param)), "--pool-size", "16M")
    (made.source / "data").write_bytes(CONTENT)
    return made


@pytest.fixture
def client(mounted: Mount) -> Iterator[LeaseClient]:
    with attach(mounted.path) as made:
        yield made


def figures(mounted: Mount) -> dict[str, int]:
    found: dict[str, int] = mounted.status()["leases"]
    return found


def nothing_is_left(mounted: Mount) -> None:
    def gone() -> bool:
        now = figures(mounted)
        return not (now["clients"] or now["leases"] or now["borrowed"] or now["files"])

    wait_for("the leases are back", gone)


# --- what a client sees ---------------------------------------------------------------------------


@pytest.mark.parametrize("page_size", [None, 4096, 65536])
def test_every_page(client: LeaseClient, page_size: int | None) -> None:
    with client.open("data", page_size) as file:
        size = page_size or 16384
        assert (file.page_size, file.size, len(file)) == (size, SIZE, -(-SIZE // size))
        one_by_one = b"".join(bytes(page.data) for page in file.pages(range(len(file))))
        with file.pages(range(len(file))) as pages:
            together = b"".join(bytes(page.data) for page in pages)
            assert [page.number for page in pages] == list(range(len(file)))
            assert all(page.address % size == 0 for page in pages)
            assert client.leases == len(file)
        assert one_by_one == together == CONTENT
        with file.page(3) as page:
            assert page.data == CONTENT[3 * size : 4 * size]
    assert client.leases == client.leaked == 0


def test_arrays_are_views(client: LeaseClient) -> None:
    pytest.importorskip("numpy")
    with client.open("data", 4096) as file, file.page(5) as page:
        array = page.array("<u4", offset=8, stride=64)
        assert array.__array_interface__["data"] == (page.address + 8, True)
        assert array.base is not None and len(array) == 64
        assert int(array[1]) == struct.unpack_from("<I", CONTENT, 5 * 4096 + 8 + 64)[0]
        record = page.records(struct.Struct("<QH"), offset=16, count=2)[1]
        assert tuple(record) == struct.unpack_from("<QH", CONTENT, 5 * 4096 + 16 + 10)
        with pytest.raises(ValueError):
            array[0] = 1
        with pytest.raises(PoolUsageError):
            page.array("<u4", offset=4094, count=1)
        del array, record


def test_the_mount_itself_is_the_same_memory(mounted: Mount, client: LeaseClient) -> None:
    """A write through the mount is leased at once, without another open; the disk is read once."""
    with client.open("data") as file:
        with file.page(0) as page:
            old = bytes(page.data)
            fd = os.open(mounted.path / "data", os.O_RDWR)
            os.pwrite(fd, b"through the mount", 100)
            assert page.data == old == CONTENT[:16384]
        with file.page(0) as page:
            assert bytes(page.data[100:117]) == b"through the mount"
            version = page.version
        with file.page(0) as page:
            assert page.version == version
        os.ftruncate(fd, 20000)
        os.close(fd)
        assert file.size == 20000
        with file.page(1) as page:
            assert page.size == 20000 - 16384
        with pytest.raises(IndexError, match="past the end"):
            file.page(2)


def test_what_is_leased_stays(mounted: Mount, client: LeaseClient) -> None:
    """Rewritten through the mount and behind it, truncated, unlinked, and the pool run over."""
    (mounted.source / "more").write_bytes(os.urandom(24 * MIB))
    file = client.open("data", 4096)
    with file.pages(range(0, 400)) as pages:
        (mounted.path / "data").write_bytes(bytes(SIZE))
        (mounted.source / "data").write_bytes(b"x" * SIZE)
        with open(mounted.path / "more", "rb") as more:
            while more.read(MIB):
                pass
        os.truncate(mounted.path / "data", 10)
        os.unlink(mounted.path / "data")
        file.close()
        for page in pages:
            assert page.data == CONTENT[page.number * 4096 :][:4096]
    (mounted.source / "data").write_bytes(b"new" * 5000)
    with client.open("data", 4096) as file, file.page(0) as page:
        assert page.data == (b"new" * 5000)[:4096]


def test_written_behind_the_mount(mounted: Mount, client: LeaseClient) -> None:
    """Seen at the next open of the file for leases."""
    with client.open("data") as file, file.page(0):
        pass
    (mounted.source / "data").write_bytes(b"other" * 10000)
    with client.open("data") as file, file.page(0) as page:
        assert page.data == (b"other" * 10000)[:16384]


def test_past_the_end(client: LeaseClient) -> None:
    with client.open("data", 4096) as file:
        last = len(file) - 1
        with file.page(last) as page:
            assert page.size == len(page.data) == SIZE - last * 4096
        for number in (last + 1, 1 << 40, (1 << 64) - 1):
            with pytest.raises(IndexError, match=f"page {number} of data"):
                file.page(number)
        for number in (-1, 1 << 64):
            with pytest.raises(IndexError):
                file.page(number)
        with pytest.raises(IndexError), file.pages([0, 1, last + 1]):
            pass
    assert client.leases == 0


@pytest.mark.parametrize("page_size", [0, 1, 512, 2048, 5000, 12288, 131072, -4096, 1 << 33])
def test_page_size(client: LeaseClient, page_size: int) -> None:
    with pytest.raises(PoolUsageError, match="power of two"):
        client.open("data", page_size)


def test_paths(mounted: Mount, client: LeaseClient) -> None:
    outside = mounted.source.parent / "outside"
    outside.write_bytes(b"secret")
    (mounted.source / "d").mkdir()
    (mounted.source / "d/f").write_bytes(b"inner")
    (mounted.source / "link").symlink_to(outside)
    (mounted.source / "up").symlink_to("..")
    os.mkfifo(mounted.source / "fifo")
    with client.open("d/f") as file, file.page(0) as page:
        assert page.data == b"inner"
    for path in (
        "../outside",
        "d/../../outside",
        "/etc/passwd",
        str(mounted.path / "data"),
        "d//f",
        "./d/f",
    ):
        with pytest.raises(PoolUsageError, match="below the root"):
            client.open(path)
    for path in ("link", "up/outside"):
        with pytest.raises(OSError, match=r"symbolic links|Not a directory"):
            client.open(path)
    with pytest.raises(FileNotFoundError):
        client.open("nowhere")
    with pytest.raises(IsADirectoryError):
        client.open("d")
    for path in ("fifo", ".zcfs/version"):
        with pytest.raises(ZcfsError, match="only regular files"):
            client.open(path)


# --- lifetimes ------------------------------------------------------------------------------------


def test_a_view_outlives_its_block(mounted: Mount, client: LeaseClient) -> None:
    file = client.open("data", 4096)
    with file.page(1) as page:
        kept = page.data[10:20]
    with file.pages([2, 3]) as pages:
        also = pages[1].data
    with pytest.raises(BorrowError, match="has ended"):
        _ = page.data
    assert (client.leases, client.leaked) == (2, 2)
    (mounted.path / "data").write_bytes(bytes(SIZE))
    assert kept == CONTENT[4106:4116]
    assert also == CONTENT[3 * 4096 : 4 * 4096]
    del kept, also
    gc.collect()
    assert (client.leases, client.leaked) == (0, 0)
    wait_for("they are back", lambda: figures(mounted)["borrowed"] == 0)


def every_call_says_closed(client: LeaseClient, file: LeasedFile) -> None:
    for call in (lambda: client.open("data"), lambda: file.page(0), lambda: file.size):
        with pytest.raises(PoolUsageError, match="closed"):
            call()


def test_closed_while_something_is_looked_at(mounted: Mount) -> None:
    client = attach(mounted.path)
    file = client.open("data", 4096)
    with file.page(1) as page:
        kept = page.data
    with pytest.warns(ResourceWarning, match="1 pages stay leased"):
        client.close()
    every_call_says_closed(client, file)
    (mounted.path / "data").write_bytes(bytes(SIZE))
    assert kept == CONTENT[4096:8192]
    assert figures(mounted)["borrowed"] == 4096
    del page, kept, file, client
    gc.collect()
    nothing_is_left(mounted)


def test_the_child_of_a_fork(mounted: Mount, client: LeaseClient) -> None:
    """There the client is as if closed; and the child keeps nothing alive."""
    file = client.open("data", 4096)
    page = file.page(7)

    def in_child() -> list[str]:
        said = []
        for call in (lambda: client.open("data"), lambda: file.page(0), lambda: client.close()):
            try:
                call()
                said.append("")
            except PoolUsageError as error:
                said.append(str(error))
        with attach(mounted.path) as own, own.open("data", 4096) as again, again.page(7) as seven:
            said.append(str(seven.data == CONTENT[7 * 4096 : 8 * 4096]))
        return said

    said = run_child(in_child)
    assert "closed" in said[0] and "closed" in said[1] and said[2:] == ["", "True"]
    assert page.data == CONTENT[7 * 4096 : 8 * 4096]
    assert client.leases == 1
    with child(time.sleep, 600):
        page.release()
        file.close()
        client.close()
        nothing_is_left(mounted)


HOLDER = """
import sys, time, zcfs
client = zcfs.attach(sys.argv[1])
file = client.open("more", 4096)
held = [file.page(n) for n in range(100)]
pages = file.pages(range(100, 1000))
pages.__enter__()
print(client.leases, flush=True)
time.sleep(600)
"""


def test_a_client_killed_with_a_thousand_leases(mounted: Mount) -> None:
    (mounted.source / "more").write_bytes(os.urandom(5 * MIB))
    holder = subprocess.Popen(
        [sys.executable, "-P", "-c", HOLDER, mounted.path], stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )  # fmt: skip
    assert holder.stdout is not None
    with holder.stdout:
        assert holder.stdout.readline() == b"1000\n"
    now = figures(mounted)
    assert (now["clients"], now["leases"], now["borrowed"]) == (1, 1000, 1000 * 4096)
    holder.kill()
    holder.wait()
    nothing_is_left(mounted)


def test_too_much(mounted: Mount, client: LeaseClient) -> None:
    """Half of the pool and no more; and with that gone the mount still reads."""
    content = os.urandom(24 * MIB)
    (mounted.source / "more").write_bytes(content)
    file = client.open("more", 4096)
    page: LeasedPage
    held: list[LeasedPage] = []
    with pytest.raises(BorrowError, match="too much is leased"):
        for number in range(len(file)):
            held.append(file.page(number))
    assert figures(mounted)["borrowed"] <= figures(mounted)["borrow_limit"] == client.borrow_limit
    assert len(held) * 4096 > client.borrow_limit // 4
    assert (mounted.path / "more").read_bytes() == content
    assert all(page.data == content[page.number * 4096 :][:4096] for page in held)
    for page in held[-64:]:
        page.release()
    with file.page(0), file.page(len(held) - 1):
        pass
    for page in held:
        page.release()
    with file.page(5000):
        pass


def test_the_daemon_dies(mounted: Mount) -> None:
    client = attach(mounted.path)
    file = client.open("data", 4096)
    with file.page(3) as page, file.pages(range(10, 200)) as pages:
        mounted.kill()
        for each in (page, *pages):
            assert each.data == CONTENT[each.number * 4096 :][:4096]
        began = time.monotonic()
        for call in (lambda: file.page(4), lambda: file.size, lambda: client.open("data")):
            with pytest.raises(DaemonError, match=r"its daemon has gone"):
                call()
        with pytest.raises(DaemonError, match="its daemon is dead"):
            attach(mounted.path)
        assert time.monotonic() - began < PATIENCE / 2
        assert not client.connected
    client.close()


def test_unmounting_does_not_wait_for_clients(mounted: Mount, client: LeaseClient) -> None:
    file = client.open("data", 4096)
    with file.page(3) as page:
        assert mounted.unmount() == 0
        assert page.data == CONTENT[3 * 4096 : 4 * 4096]
        with pytest.raises(DaemonError):
            file.page(4)
    assert not list(runtime_dir().glob(f"{mounted.minor}.lease"))
    with pytest.raises(ZcfsError, match="no mount of zcfs"):
        attach(mounted.path)


# --- who, and what else ---------------------------------------------------------------------------


def dial(path: str | Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    made.connect(str(path))
    made.settimeout(PATIENCE)
    return made


HELLO = struct.Struct("<IIiIQQ224s")


def test_garbage(mounted: Mount, client: LeaseClient) -> None:
    """Costs that connection and a line of the log, and nobody else anything."""
    mounted.expect_log("sent what is no request")
    file = client.open("data", 4096)
    where = figures(mounted)["socket"]
    rng = random.Random(1)
    with file.page(0) as page:
        for _ in range(50):
            with dial(str(where)) as other:
                assert HELLO.unpack(other.recv(4096))[:3] == (0x534C435A, 1, 0)
                other.send(rng.randbytes(rng.choice([1, 15, 16, 17, 40, 4000])))
                assert other.recv(4096) == b""
            assert (mounted.path / "data").stat().st_size == SIZE
        assert page.data == CONTENT[:4096]
    assert figures(mounted)["dropped"] == 50
    wait_for("it is logged", lambda: mounted.log.read_text().count("sent what is no request") == 50)
    with file.page(1) as page:
        assert page.data == CONTENT[4096:8192]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_stranger_is_refused(mounted: Mount) -> None:
    """By the directory; and where that does not stop him, by a message that says why."""
    with pytest.raises(PermissionError, match="only root and user 0"):
        run_child(attach, str(mounted.path), uid=NOBODY)
    where = Path(str(figures(mounted)["socket"]))
    assert where.stat().st_mode & 0o777 == 0o600
    assert where.parent.stat().st_mode & 0o777 == 0o700
    public = Path(tempfile.mkdtemp(dir=where.parent.parent))
    try:
        os.link(where, public / "door")
        public.chmod(0o755)
        (public / "door").chmod(0o666)

        def knock() -> tuple[int, bytes, list[bytes]]:
            with dial(public / "door") as door:
                message, rights, _, _ = door.recvmsg(4096, socket.CMSG_SPACE(4))
                return (
                    HELLO.unpack(message)[2],
                    message,
                    [bytes(door.recv(10)), *(r[2] for r in rights)],
                )

        error, message, more = run_child(knock, uid=NOBODY)
        assert error == -13
        assert b"only root and user 0, who mounted it, may borrow pages" in message
        assert more == [b""], "a descriptor was handed out, or the connection stayed"
        assert figures(mounted)["refused"] == 1
    finally:
        shutil.rmtree(public)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
@pytest.mark.skipif(not shutil.which("fusermount3"), reason="fusermount3 is not installed")
@pytest.mark.usefixtures("dev_fuse_for_users")
def test_the_mount_of_an_ordinary_user(new_directory: Callable[[str], Path]) -> None:
    """Its owner may lease, root may, and nobody else."""
    base, runtime = new_directory("user"), Path("/tmp/zcfs-1000")
    was_there = runtime.exists()
    for path in (base, base / "source", base / "mnt"):
        path.mkdir(exist_ok=True)
        os.chown(path, 1000, 1000)
    (base / "source/data").write_bytes(CONTENT)
    (base / "source/secret").write_bytes(b"root's")
    (base / "source/secret").chmod(0o600)
    (base / "source/data").chmod(0o644)

    def live(stop: int) -> list[str]:
        os.environ.pop("XDG_RUNTIME_DIR", None)
        made = harness.start(base / "source", base / "mnt", None, "--engine", "pool")
        made.expect_log("passthrough", "transport", "read-ahead", "unprivileged")
        try:
            assert look() == CONTENT[:4096]
            Path(base / "ready").touch()
            os.read(stop, 1)
        finally:
            subprocess.run(["fusermount3", "-u", made.path], check=True)
            made.process.wait(PATIENCE)
        return made.close()

    def look() -> bytes:
        with attach(base / "mnt") as client, client.open("data", 4096) as file, file.page(0) as page:
            with pytest.raises(PermissionError):
                client.open("secret")
            return bytes(page.data)

    stop, go = os.pipe()
    try:
        with child(live, stop, uid=1000, gid=1000) as process:
            wait_for("it is mounted", lambda: (base / "ready").exists() or process.finished())
            if not process.finished():
                assert look() == CONTENT[:4096]
                with pytest.raises(PermissionError, match="only root and user 1000"):
                    run_child(attach, str(base / "mnt"), uid=1001)
            os.write(go, b"x")
            assert process.result() == []
    finally:
        os.close(stop)
        os.close(go)
        if not was_there:
            shutil.rmtree(runtime, ignore_errors=True)


def test_the_arena_cannot_be_written_to(mounted: Mount, client: LeaseClient) -> None:
    with client.open("data") as file, file.page(0) as page:
        assert page.data.readonly
        with pytest.raises(TypeError):
            page.data[0] = 1
    with open("/proc/self/maps") as maps:
        modes = [line.split()[1] for line in maps if "memfd:zcfs-pool" in line]
    assert modes == ["r--s"]
    with dial(str(figures(mounted)["socket"])) as own:
        message, rights, _, _ = own.recvmsg(4096, socket.CMSG_SPACE(4))
        fd = struct.unpack("i", rights[0][2])[0]
        length = HELLO.unpack(message)[4]
    try:
        with pytest.raises(PermissionError):
            mmap.mmap(fd, length, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        with pytest.raises(OSError):
            os.pwrite(fd, b"x", 0)
        with pytest.raises(OSError):
            os.ftruncate(fd, 0)
        with pytest.raises(OSError):
            again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
            try:
                mmap.mmap(again, length, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
            finally:
                os.close(again)
    finally:
        os.close(fd)


def test_sixty_four_clients(mounted: Mount) -> None:
    where = str(figures(mounted)["socket"])
    held = [dial(where) for _ in range(64)]
    assert all(HELLO.unpack(one.recv(4096))[2] == 0 for one in held)
    with pytest.raises(ZcfsError, match="64 clients borrow pages already"):
        attach(mounted.path)
    for one in held:
        one.close()
    nothing_is_left(mounted)
    attach(mounted.path).close()


@pytest.mark.parametrize("engine", ["kernel", "buffered"])
def test_a_mount_without_a_pool(start: Callable[..., Mount], engine: str) -> None:
    from .conftest import require

    mounted = start(require(Mode(engine, "dev")))
    assert "leases" not in mounted.status()
    with pytest.raises(ZcfsError, match=r"no pool \(mount it with --engine pool\)"):
        attach(mounted.path)


def test_names_of_the_mount_point(mounted: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
    link = mounted.path.parent / "to it"
    link.symlink_to(mounted.path)
    monkeypatch.chdir(mounted.path.parent)
    for name in (f"{mounted.path}/", "mnt", "./nowhere/../mnt", str(link), "to it"):
        with attach(name) as client, client.open("data") as file:
            assert file.size == SIZE
    for name in (mounted.path / "data", mounted.path.parent, "/proc", "nowhere", "x" * 5000, ""):
        with pytest.raises((ZcfsError, OSError)):
            attach(name)


def test_the_header_in_c99_and_in_cxx(tmp_path: Path) -> None:
    if not shutil.which("cc"):
        pytest.skip("needs a C compiler")
    header = ROOT / "native" / "client"
    source = tmp_path / "user.c"
    source.write_text(
        '#include "zcfs_client.h"\nint main(void) { return *zcfs_client_message(); }\n'
    )
    strict = ["-Wall", "-Wextra", "-Werror", "-pedantic-errors", "-I", str(header), str(source)]
    subprocess.run(["cc", "-std=c99", "-fsyntax-only", *strict], check=True)
    if shutil.which("c++"):
        subprocess.run(["c++", "-x", "c++", "-std=c++11", "-fsyntax-only", *strict], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root for a mount of a mount")
def test_nobody_waits_for_a_client_that_waits_for_the_disk(start: Callable[..., Mount]) -> None:
    """The source is itself a mount, whose daemon is stopped while a client leases from it."""
    mode = Mode("buffered", "dev")
    inner = start(mode)
    (inner.source / "data").write_bytes(CONTENT)
    outer = start(Mode("pool", "dev"), "--pool-size", "16M", source=inner.path)
    outer.expect_log("pool: the source refuses O_DIRECT")
    with attach(outer.path) as quick, quick.open("data", 4096) as file, attach(outer.path) as slow:
        with file.page(3):
            pass
        waiting = slow.open("data", 4096)
        got: list[bytes] = []

        def wait() -> None:
            with waiting.page(300) as page:
                got.append(bytes(page.data))

        thread = threading.Thread(target=wait)
        os.kill(inner.pid, signal.SIGSTOP)
        try:
            thread.start()
            thread.join(0.3)
            began = time.monotonic()
            for _ in range(100):
                with file.page(3) as page:
                    assert page.data == CONTENT[3 * 4096 : 4 * 4096]
            assert figures(outer)["clients"] == 2
            assert time.monotonic() - began < 5
            assert thread.is_alive() and not got
        finally:
            os.kill(inner.pid, signal.SIGCONT)
            thread.join()
        assert got == [CONTENT[300 * 4096 :][:4096]]
        waiting.close()
    assert outer.close() == []


@pytest.mark.limit(120)
def test_the_bench_and_the_c_library(mounted: Mount, tmp_path: Path) -> None:
    """bench/leases.c on the sources of libzcfs-client: it checks what it leases."""
    if not shutil.which("cc"):
        pytest.skip("needs a C compiler")
    program = tmp_path / "leases"
    sources = [ROOT / "bench/leases.c", *(ROOT / "native/client").glob("*.c")]
    flags = ["-O2", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-pthread"]
    subprocess.run(["cc", *flags, "-o", program, *sources], check=True)
    done = subprocess.run(
        [program, mounted.path, "records", "1", "4096", "64", "0.1"], capture_output=True
    )
    assert done.returncode == 0, done.stderr
    assert b'"leases"' in done.stdout and b'"pread"' in done.stdout
    nothing_is_left(mounted)


def test_many_threads(mounted: Mount) -> None:
    """One client, many threads, and the mount written to beside it: no page is torn."""
    blocks = 64
    path = mounted.path / "blocks"
    path.write_bytes(b"".join(bytes([n]) * 4096 for n in range(blocks)))
    wrong: list[str] = []
    stop = threading.Event()

    def look(client: LeaseClient, seed: int) -> None:
        rng = random.Random(seed)
        with client.open("blocks", 4096) as file:
            while not stop.is_set():
                with file.pages(rng.sample(range(blocks), 8)) as pages:
                    for page in pages:
                        if page.data.tobytes().strip(page.data[:1]):
                            wrong.append(f"page {page.number} is torn")

    with attach(mounted.path) as client:
        threads = [threading.Thread(target=look, args=(client, seed)) for seed in range(4)]
        for thread in threads:
            thread.start()
        fd = os.open(path, os.O_RDWR)
        for turn in range(300):
            os.pwrite(fd, bytes([turn % 256]) * 4096, turn * 7 % blocks * 4096)
        os.close(fd)
        stop.set()
        for thread in threads:
            thread.join()
    assert not wrong
    nothing_is_left(mounted)
