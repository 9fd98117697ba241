"""mount.zcfs and mount.fuse.zcfs: mount(8), remount, fstab."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from zcfs.cli.mount_zcfs import daemon_options, parse, remount_flags
from zcfs.errors import UsageError
from zcfs.mountinfo import Mount

from .conftest import Run, Site, one_line

HELPER = (sys.executable, "-P", "-m", "zcfs.cli.mount_zcfs")
RO, NOSUID, NODEV, NOEXEC = 1, 2, 4, 8


def test_parse() -> None:
    request = parse(["/src", "/mnt", "-n", "-v", "-s", "-o", "ro,noatime", "-t", "zcfs"])
    assert (request.name, request.mountpoint) == ("/src", "/mnt")
    assert request.options == ("ro", "noatime")
    assert (request.verbose, request.sloppy, request.fake) == (True, True, False)


@pytest.mark.parametrize("argv", [[], ["/src"], ["/src", "/mnt", "more"], ["/src", "/mnt", "-q"]])
def test_parse_refuses(argv: list[str]) -> None:
    with pytest.raises(UsageError, match="usage"):
        parse(argv)


def test_source_option_names_the_directory_and_sets_fsname() -> None:
    request = parse(["name", "/mnt", "-o", "source=/dir,rw,_netdev,x-systemd.automount"])
    source, options = daemon_options(request)
    assert source == "/dir"
    assert options.mount_options == ("fsname=name", "subtype=", "rw")


def test_sloppy_drops_what_the_daemon_does_not_know() -> None:
    assert daemon_options(parse(["/s", "/m", "-s", "-o", "huge=1,ro"]))[1].mount_options == ("ro",)
    kept = daemon_options(parse(["/s", "/m", "-o", "huge=1,ro"]))[1].mount_options
    assert kept == ("huge=1", "ro")


def mount_with(*options: str) -> Mount:
    return Mount(1, "0:5", "/mnt", options, "fuse.zcfs", "/src", ("rw", "user_id=0"))


def test_remount_changes_what_is_named_and_keeps_the_rest() -> None:
    mount = mount_with("rw", "nosuid", "nodev")
    assert remount_flags(mount, ["remount", "ro"]) == RO | NOSUID | NODEV
    assert remount_flags(mount, ["remount", "suid", "noexec"]) == NODEV | NOEXEC
    assert remount_flags(mount_with("ro"), ["remount", "rw"]) == 0


def test_remount_accepts_what_mountinfo_shows() -> None:
    shown = ["remount", "ro", "user_id=0", "group_id=0", "default_permissions", "allow_other"]
    assert remount_flags(mount_with("rw"), shown) == RO


def test_remount_refuses_what_it_cannot_change() -> None:
    with pytest.raises(UsageError, match="engine=buffered cannot change"):
        remount_flags(mount_with("rw"), ["remount", "engine=buffered"])


# --- the helper itself ----------------------------------------------------------------------------


def helper(*args: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*HELPER, *args], capture_output=True, text=True, check=False)


def test_helper_mounts(site: Site) -> None:
    done = helper(site.source, site.point, "-v", "-o", "rw,noatime")
    assert done.returncode == 0, done.stderr
    assert site.mounted().fstype == "fuse.zcfs"
    assert (site.point / "file").exists()


def test_helper_with_a_source_option(site: Site) -> None:
    done = helper("myname", site.point, "-o", f"source={site.source}")
    assert done.returncode == 0, done.stderr
    mount = site.mounted()
    assert (mount.fstype, mount.source) == ("fuse", "myname")
    row = next(r for r in site.json("list")["mounts"] if r["mountpoint"] == str(site.point))
    assert row["state"] == "serving"
    assert site.run("umount", site.point).returncode == 0


def test_helper_fakes(site: Site) -> None:
    assert helper(site.source, site.point, "-f").returncode == 0
    assert not site.is_mounted()


def test_helper_fails_with_one_line(site: Site) -> None:
    done = helper(site.base / "missing", site.point)
    assert done.returncode in (1, 2)
    assert str(site.base / "missing") in one_line(done)


@pytest.mark.skipif(os.geteuid() != 0, reason="mount(2) needs root")
def test_helper_remounts(mounted: Site) -> None:
    assert helper(mounted.source, mounted.point, "-o", "remount,ro,noexec").returncode == 0
    assert {"ro", "noexec"} <= set(mounted.mounted().options)
    with pytest.raises(OSError, match="Read-only"):
        (mounted.point / "new").write_text("")
    assert helper(mounted.source, mounted.point, "-o", "remount,rw").returncode == 0
    (mounted.point / "new").write_text("")
    assert "noexec" in mounted.mounted().options


@pytest.mark.skipif(os.geteuid() != 0, reason="mount(2) needs root")
def test_helper_does_not_remount_what_the_daemon_keeps_read_only(site: Site) -> None:
    site.mount("--read-only")
    done = helper(site.source, site.point, "-o", "remount,rw")
    assert done.returncode == 1
    assert "read-only" in one_line(done)


# --- mount(8) -------------------------------------------------------------------------------------


@pytest.fixture
def installed(mountctl: Run) -> Iterator[None]:
    """The helpers in /sbin, for as long as a test runs."""
    if os.geteuid() != 0:
        pytest.skip("writes to /sbin: needs root")
    if not Path(sys.executable).with_name("mount.zcfs").exists():
        pytest.skip("zcfs is not installed beside this Python")
    if os.path.lexists("/sbin/mount.zcfs"):
        pytest.skip("/sbin/mount.zcfs is there already, and may be in use")
    done = mountctl("install-helper")
    assert done.returncode == 0, done.stderr
    try:
        yield
    finally:
        assert mountctl("install-helper", "--remove").returncode == 0
    assert not os.path.lexists("/sbin/mount.zcfs")


@pytest.mark.usefixtures("installed")
def test_mount8(site: Site) -> None:
    def mount(*args: str | Path) -> None:
        subprocess.run(["mount", *args], check=True)

    mount("-t", "zcfs", site.source, site.point, "-o", "noatime")
    assert (site.point / "file").exists()
    mount("-o", "remount,ro", site.point)
    assert "ro" in site.mounted().options
    mount("-o", "remount,rw", site.point)
    (site.point / "new").write_text("")
    subprocess.run(["umount", site.point], check=True)
    mount("-t", "fuse.zcfs", "name", site.point, "-o", f"source={site.source}")
    assert site.mounted().source == "name"


@pytest.mark.usefixtures("installed")
def test_fstab(site: Site) -> None:
    fstab = site.base / "fstab"
    fstab.write_text(f"{site.source} {site.point} zcfs ro,noauto,nofail,x-note=1 0 0\n")
    subprocess.run(["mount", "--fstab", fstab, site.point], check=True)
    assert "ro" in site.mounted().options + site.mounted().super_options


def test_install_helper_into_a_directory(tmp_path: Path, mountctl: Run) -> None:
    if not Path(sys.executable).with_name("mount.zcfs").exists():
        pytest.skip("zcfs is not installed beside this Python")
    assert mountctl("install-helper", "--dir", tmp_path).returncode == 0
    assert shutil.which("mount.fuse.zcfs", path=str(tmp_path)) is not None
    assert mountctl("install-helper", "--dir", tmp_path).returncode == 0
    assert mountctl("install-helper", "--dir", tmp_path, "--remove").returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_install_helper_where_it_cannot_write(tmp_path: Path, mountctl: Run) -> None:
    if not Path(sys.executable).with_name("mount.zcfs").exists():
        pytest.skip("zcfs is not installed beside this Python")
    done = mountctl("install-helper", "--dir", tmp_path / "missing")
    assert done.returncode == 1
    assert one_line(done).startswith(f"mountctl: {tmp_path}/missing: No such file")


def test_install_helper_leaves_files_of_others(tmp_path: Path, mountctl: Run) -> None:
    (tmp_path / "mount.zcfs").write_text("mine")
    done = mountctl("install-helper", "--dir", tmp_path, "--remove")
    assert done.returncode == 1
    assert (tmp_path / "mount.zcfs").read_text() == "mine"
