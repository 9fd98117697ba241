"""The launcher's set-up: stamps, progress, and what it says without root."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def bootstrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """tools/bootstrap.py, working on an empty checkout of its own."""
    spec = importlib.util.spec_from_file_location("bootstrap", ROOT / "tools" / "bootstrap.py")
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "bootstrap", module)
    spec.loader.exec_module(module)
    module.ROOT = tmp_path
    module.VENV = tmp_path / ".venv"
    module.PYTHON = module.VENV / "bin" / "python"
    module.BUILD = tmp_path / "build"
    module.LOG = module.BUILD / "setup.log"
    module.DEPS_STAMP = module.VENV / "deps.stamp"
    module.BUILD_STAMP = module.VENV / "build.stamp"
    module.BUILD.mkdir()
    (tmp_path / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    (tmp_path / "zcfs").mkdir()
    (tmp_path / "zcfs" / "a.py").write_text("1")
    assert isinstance(module, types.ModuleType)
    return module


def pretend_venv(bootstrap: Any, root: Path | None = None) -> None:
    bootstrap.PYTHON.parent.mkdir(parents=True)
    bootstrap.PYTHON.symlink_to(sys.executable)
    (bootstrap.PYTHON.parent / "zcfsd").symlink_to("/bin/true")
    (bootstrap.VENV / "lib/python3.11/site-packages/rich").mkdir(parents=True)
    names = bootstrap.requirements(())
    stamp = {"root": str(root or bootstrap.ROOT), "requirements": names, "packages": ["rich"]}
    bootstrap._write_stamp(bootstrap.DEPS_STAMP, stamp)


def test_a_venv_without_its_stamp_or_python_does_not_count(bootstrap: Any) -> None:
    assert not bootstrap.venv_works()
    pretend_venv(bootstrap)
    assert bootstrap.venv_works()
    bootstrap.PYTHON.unlink()
    bootstrap.PYTHON.symlink_to("/nosuch/python")
    assert not bootstrap.venv_works()


def test_a_venv_that_lost_a_package_does_not_count(bootstrap: Any) -> None:
    pretend_venv(bootstrap)
    (bootstrap.VENV / "lib/python3.11/site-packages/rich").rmdir()
    assert not bootstrap.venv_works()


def test_a_venv_that_was_moved_does_not_count(bootstrap: Any) -> None:
    pretend_venv(bootstrap, Path("/elsewhere"))
    assert not bootstrap.venv_works()


def test_a_torn_stamp_counts_as_none(bootstrap: Any) -> None:
    pretend_venv(bootstrap)
    bootstrap.DEPS_STAMP.write_text('{"root": "')
    assert not bootstrap.venv_works()


def test_extras_are_added_to_what_is_there(bootstrap: Any) -> None:
    pretend_venv(bootstrap)
    assert bootstrap.missing_requirements(set()) == []
    assert bootstrap.missing_requirements({"demo"}) == ["pyarrow>=14"]
    assert "pytest>=8" in bootstrap.missing_requirements({"test"})


@pytest.mark.parametrize("change", ["edit", "add", "remove"])
def test_any_change_of_the_sources_needs_a_build(bootstrap: Any, change: str) -> None:
    pretend_venv(bootstrap)
    bootstrap._write_stamp(bootstrap.BUILD_STAMP, {"sources": bootstrap.fingerprint()})
    assert bootstrap.is_built()
    path = bootstrap.ROOT / "zcfs" / "a.py"
    if change == "edit":
        path.write_text("2")
        os.utime(path, ns=(1, 1))  # older than the build, as after a checkout
    elif change == "add":
        (bootstrap.ROOT / "zcfs" / "b.py").write_text("")
    else:
        path.unlink()
    assert not bootstrap.is_built()


def test_bytecode_is_no_source(bootstrap: Any) -> None:
    before = bootstrap.fingerprint()
    (bootstrap.ROOT / "zcfs" / "__pycache__").mkdir()
    (bootstrap.ROOT / "zcfs" / "__pycache__" / "a.pyc").write_text("")
    assert bootstrap.fingerprint() == before


def test_progress_of_the_tools(bootstrap: Any) -> None:
    assert bootstrap._apt_progress("dlstatus:1:50.0:Retrieving") == (0.25, "Retrieving")
    assert bootstrap._apt_progress("pmstatus:fio:50.0:Unpacking fio") == (0.75, "Unpacking fio")
    assert bootstrap._apt_progress("Reading package lists...") is None
    assert bootstrap._ninja_progress("[3/12] Compiling C object x.o") == (
        0.25,
        "Compiling C object x.o",
    )


def test_run_logs_and_returns_the_status(
    bootstrap: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = []
    with bootstrap.Step("a step") as step:
        command = ["sh", "-c", "echo one; printf two; exit 3"]
        assert bootstrap.run(command, step, lambda line: seen.append(line)) == 3
    assert seen == ["one", "two"]
    assert bootstrap.log_tail().splitlines()[-2:] == ["    one", "    two"]
    out, err = capsys.readouterr()
    assert out == ""
    assert "a step" in err


def test_missing_packages_without_root(bootstrap: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(bootstrap.SetupError, match="as root: apt-get install gcc fuse3"):
        bootstrap.install_packages(["gcc", "fuse3"])


def test_a_failing_step_shows_the_log(
    bootstrap: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(needs: set[str]) -> None:
        bootstrap.LOG.write_text("the reason\n")
        raise bootstrap.ToolError("the build failed")

    monkeypatch.setattr(bootstrap, "prepare", fail)
    monkeypatch.setattr(bootstrap, "activate", lambda: None)
    with pytest.raises(SystemExit) as ended:
        bootstrap.prepare_or_exit("mountctl", set())
    assert "    the reason\n" in str(ended.value.code)
    assert "mountctl: the build failed" in str(ended.value.code)


def test_requirements_hold_what_pyproject_names(bootstrap: Any) -> None:
    names = bootstrap.requirements({"test"})
    assert "meson-python>=0.16" in names
    assert "pyfuse3>=3.4" in names
    assert len(names) == len(set(names))


def test_the_launcher_shows_help_without_a_set_up(tmp_path: Path) -> None:
    (tmp_path / "tools").mkdir()
    for name in ("mountctl", "tools/bootstrap.py"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / "zcfs").symlink_to(ROOT / "zcfs")
    done = subprocess.run(
        [sys.executable, tmp_path / "mountctl", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("usage: mountctl")
    assert not (tmp_path / ".venv").exists()
