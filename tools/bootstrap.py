"""Sets up a checkout: system packages, .venv, the build. Standard library only.

Three steps, each skipped when its stamp says that nothing has changed:

    packages   apt-get as root; anybody else is told what is missing
    .venv      a virtual environment with what pyproject.toml names (deps.stamp)
    build      `pip install .`, incremental in build/pip (build.stamp)

A stamp is removed before its step begins and written when it has ended, so that an interrupted
step is done again. One process at a time sets up (build/setup.lock). What the tools print goes to
build/setup.log; the terminal gets one line a step, on stderr, so that `--json` output stays clean.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import re
import selectors
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
BUILD = ROOT / "build"
LOG = BUILD / "setup.log"
PYTHON = VENV / "bin" / "python"
DEPS_STAMP = VENV / "deps.stamp"
BUILD_STAMP = VENV / "build.stamp"

BASE_PACKAGES = ("gcc", "libc6-dev", "pkg-config", "fuse3", "libfuse3-dev", "liburing-dev")
EXTRA_PACKAGES = {
    "demo": ("sqlite3", "fio"),
    "bench": ("fio",),
    "test": ("sqlite3", "fio", "attr", "acl", "strace"),
}
# Where dpkg is missing: the command that shows the package to be there.
COMMANDS = {"gcc": "gcc", "pkg-config": "pkg-config", "fuse3": "fusermount3",
            "sqlite3": "sqlite3", "fio": "fio", "attr": "setfattr", "acl": "setfacl"}  # fmt: skip

Progress = Callable[[str], "tuple[float | None, str] | None"]


class SetupError(Exception):
    """The set-up cannot go on; the message is one line for the user."""


class ToolError(SetupError):
    """A tool failed: the end of the log tells why."""


# --- one line a step ------------------------------------------------------------------------------


class Step:
    """One line on stderr: a bar while it runs on a terminal, and its time when it is done."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.began = time.monotonic()
        self.fraction: float | None = None
        self.note = ""
        self.tty = sys.stderr.isatty()
        encoding = (sys.stderr.encoding or "").lower().replace("-", "")
        self.marks = ("✓", "✗", "█", "░") if encoding == "utf8" else ("ok", "FAILED", "#", ".")

    def __enter__(self) -> Step:
        self.draw()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        mark = self.marks[0] if kind is None else self.marks[1]
        clear = "\r\x1b[K" if self.tty else ""
        self._write(f"{clear}  {mark} {self.name:<58} {self._seconds():6.1f} s\n")

    def draw(self) -> None:
        """Redraw the bar; on anything but a terminal, nothing."""
        if not self.tty:
            return
        width = 24
        if self.fraction is None:  # length unknown: a block that wanders
            at = int(self._seconds() * 8) % (width - 3)
            bar = self.marks[3] * at + self.marks[2] * 4 + self.marks[3] * (width - 4 - at)
        else:
            full = int(self.fraction * width)
            bar = self.marks[2] * full + self.marks[3] * (width - full)
        line = f"  {bar} {self._seconds():5.1f} s  {self.name}  {self.note}"
        self._write("\r\x1b[K" + line[: shutil.get_terminal_size().columns - 1])

    def _seconds(self) -> float:
        return time.monotonic() - self.began

    @staticmethod
    def _write(text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()


def run(cmd: Sequence[str | Path], step: Step, progress: Progress) -> int:
    """Run `cmd`, its output to the log, its progress to the step's bar. Returns its status."""
    env = {**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
    env.pop("PYTHONPATH", None)
    with LOG.open("ab") as log:
        log.write(f"\n$ {' '.join(map(str, cmd))}\n".encode())
        with subprocess.Popen(
            cmd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            cwd=ROOT, env=env,
        ) as child:  # fmt: skip
            try:
                for line in _lines(child, step):
                    log.write(line)
                    log.flush()
                    news = progress(line.decode("utf-8", "replace").strip())
                    if news is not None:
                        step.fraction, step.note = news
            except BaseException:
                _interrupt(child)
                raise
    return child.returncode


def _interrupt(child: subprocess.Popen[bytes]) -> None:
    """End a tool as Ctrl-C would: pip then takes its temporary directories away."""
    child.send_signal(signal.SIGINT)
    try:
        child.wait(10)
    except subprocess.TimeoutExpired:
        child.terminate()


def _lines(child: subprocess.Popen[bytes], step: Step) -> Iterator[bytes]:
    """The lines of a child's output; redraws the bar ten times a second."""
    assert child.stdout is not None
    fd = child.stdout.fileno()
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(fd, selectors.EVENT_READ)
        while True:
            step.draw()
            if not selector.select(0.1):
                continue
            data = os.read(fd, 65536)
            if not data:
                break
            *whole, rest = (rest + data).split(b"\n")
            yield from (line + b"\n" for line in whole)
    if rest:
        yield rest + b"\n"


def log_tail(count: int = 15) -> str:
    """The last lines of the log, indented, up to where pip begins to explain itself."""
    with contextlib.suppress(OSError):
        lines = LOG.read_text(errors="replace").splitlines()
        ends = [i for i, line in enumerate(lines) if "subprocess-exited-with-error" in line]
        lines = [line for line in lines[: ends[-1] if ends else None] if line.strip()]
        return "".join(f"    {line}\n" for line in lines[-count:])
    return ""


# --- system packages ------------------------------------------------------------------------------


def wanted_packages(needs: Iterable[str]) -> list[str]:
    """The Debian packages for a set-up with these needs ('demo', 'bench', 'test')."""
    names = list(BASE_PACKAGES)
    version = f"python3.{sys.version_info[1]}"
    if not Path(sysconfig.get_paths()["include"], "Python.h").exists():
        names.append(f"{version}-dev")
    if importlib.util.find_spec("ensurepip") is None:
        names.append(f"{version}-venv")
    for need in needs:
        names.extend(EXTRA_PACKAGES.get(need, ()))
    return list(dict.fromkeys(names))


def missing_packages(names: Sequence[str]) -> list[str]:
    """Those of `names` that are not installed."""
    if shutil.which("dpkg-query") is None:
        return [n for n in names if n in COMMANDS and shutil.which(COMMANDS[n]) is None]
    form = "${Package} ${db:Status-Status}\n"
    cmd = ["dpkg-query", "-W", "-f", form, *names]
    out = subprocess.run(cmd, capture_output=True, text=True, check=False).stdout
    there = {line.split()[0] for line in out.splitlines() if line.endswith(" installed")}
    return [n for n in names if n not in there]


def install_packages(names: Sequence[str]) -> None:
    """apt-get what is missing. Raises SetupError, naming it, where that is not possible."""
    command = f"apt-get install {' '.join(names)}"
    if os.geteuid() != 0:
        raise SetupError(f"these packages are missing; as root: {command}")
    if shutil.which("apt-get") is None:
        raise SetupError(f"no apt-get here; install what Debian calls: {' '.join(names)}")
    with Step(f"system packages: {' '.join(names)}") as step:
        if _apt(step, "install", *names) == 0:
            return
        # Old package lists, or a dpkg that was interrupted: mend both, and try once more.
        run(["dpkg", "--configure", "-a"], step, lambda line: None)
        _apt(step, "update")
        if _apt(step, "install", *names) != 0:
            raise ToolError(f"{command} failed")


def _apt(step: Step, *args: str) -> int:
    options = ["-y", "-q", "-o", "APT::Status-Fd=1", "-o", "DPkg::Lock::Timeout=300"]
    return run(["apt-get", *options, "--no-install-recommends", *args], step, _apt_progress)


def _apt_progress(line: str) -> tuple[float | None, str] | None:
    """`dlstatus:1:41.5:Retrieving…` is the first half of the bar, `pmstatus:…` the second."""
    found = re.match(r"(dl|pm)status:[^:]*:([0-9.]+):(.*)", line)
    if not found:
        return None
    share = float(found[2]) / 200
    return (share if found[1] == "dl" else 0.5 + share), found[3]


# --- .venv ----------------------------------------------------------------------------------------


def requirements(extras: Iterable[str]) -> list[str]:
    """What pyproject.toml asks for: the build's requirements, the package's, and the extras'."""
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())
    names = data["build-system"]["requires"] + data["project"]["dependencies"]
    optional = data["project"]["optional-dependencies"]
    for extra in sorted(extras):
        names = names + optional.get(extra, [])
    return list(dict.fromkeys(names))


def _read_stamp(path: Path) -> dict[str, object]:
    try:
        stamp = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def _write_stamp(path: Path, stamp: dict[str, object]) -> None:
    partial = path.with_suffix(".new")
    partial.write_text(json.dumps(stamp))
    partial.replace(path)


def venv_works() -> bool:
    """Whether .venv was made here, to the end, and is still whole."""
    stamp = _read_stamp(DEPS_STAMP)
    packages = stamp.get("packages")
    return (
        os.access(PYTHON, os.X_OK)
        and stamp.get("root") == str(ROOT)
        and isinstance(packages, list)
        and set(packages) <= set(_packages())
    )


def _packages() -> list[str]:
    """What lies in .venv's site-packages, but for zcfs itself, which the build stamp covers."""
    return [p.name for p in VENV.glob("lib/python3*/site-packages/*") if "zcfs" not in p.name]


def _stamp_requirements(names: Sequence[str]) -> None:
    stamp: dict[str, object] = {"root": str(ROOT)}
    stamp |= {"requirements": list(names), "packages": _packages()}
    _write_stamp(DEPS_STAMP, stamp)


def missing_requirements(extras: set[str]) -> list[str]:
    """The requirements that .venv was not given yet."""
    have = _read_stamp(DEPS_STAMP).get("requirements")
    known = set(have) if isinstance(have, list) else set()
    return [name for name in requirements(extras) if name not in known]


def make_venv() -> None:
    """A new .venv; whatever was there goes."""
    with Step(".venv") as step:
        _remove_venv()
        if run([sys.executable, "-m", "venv", str(VENV)], step, lambda line: None) != 0:
            raise ToolError(f"python -m venv {VENV} failed")


def _remove_venv() -> None:
    """Take a broken .venv away; its interpreter first, so that what is left never looks whole."""
    for path in (DEPS_STAMP, BUILD_STAMP, PYTHON):
        path.unlink(missing_ok=True)
    if VENV.is_symlink() or VENV.is_file():
        VENV.unlink()
    elif VENV.exists():
        shutil.rmtree(VENV)


def install_requirements(names: Sequence[str]) -> None:
    """pip install what pyproject.toml names. The stamp remembers what was given before."""
    have = _read_stamp(DEPS_STAMP).get("requirements")
    known = list(have) if isinstance(have, list) else []
    with Step("Python packages") as step:
        DEPS_STAMP.unlink(missing_ok=True)
        if run([*_pip(), *names], step, _pip_progress) != 0:
            if known:  # pip ended by itself: what was there before still is
                _stamp_requirements(known)
            raise ToolError("pip install failed")
        _stamp_requirements([*known, *names])


def _pip() -> list[str]:
    return [str(PYTHON), "-m", "pip", "install", "--disable-pip-version-check",
            "--progress-bar=off", "--no-input"]  # fmt: skip


def _pip_progress(line: str) -> tuple[float | None, str] | None:
    if line.startswith(("Collecting", "Building wheel", "Installing")):
        return None, line[:60]
    return None


# --- the build ------------------------------------------------------------------------------------


def fingerprint() -> str:
    """Name, time and size of every source file: any change of a file set or a file shows."""
    digest = hashlib.sha256()
    for path in _sources():
        info = path.stat()
        digest.update(f"{path}\0{info.st_mtime_ns}\0{info.st_size}\n".encode())
    return digest.hexdigest()


def _sources() -> Iterator[Path]:
    tops = ("pyproject.toml", "meson.build", "meson_options.txt", "meson.options")
    yield from (ROOT / name for name in tops if (ROOT / name).exists())
    for top in ("native", "zcfs"):
        for folder, folders, files in os.walk(ROOT / top):
            folders[:] = sorted(f for f in folders if f != "__pycache__")
            yield from (Path(folder, name) for name in sorted(files))


def is_built() -> bool:
    """Whether .venv holds a build of the sources as they are now."""
    if not os.access(VENV / "bin" / "zcfsd", os.X_OK):
        return False
    return _read_stamp(BUILD_STAMP).get("sources") == fingerprint()


def build() -> None:
    """Compile what changed, and install it into .venv."""
    with Step("build") as step:
        sources = fingerprint()
        BUILD_STAMP.unlink(missing_ok=True)
        if run(_build_command(), step, _ninja_progress) != 0:
            if "FAILED: " in LOG.read_text(errors="replace"):  # ninja's word: it is the source
                raise ToolError("the build failed")
            # A build directory of another compiler or another Python does not mend itself.
            shutil.rmtree(BUILD / "pip", ignore_errors=True)
            if run(_build_command(), step, _ninja_progress) != 0:
                raise ToolError("the build failed")
        _write_stamp(BUILD_STAMP, {"sources": sources})


def _build_command() -> list[str]:
    # meson and ninja come from .venv, so its bin/ must come first: see activate().
    return [*_pip(), "-v", "--no-build-isolation", "--no-deps", "--force-reinstall",
            "--config-settings=build-dir=build/pip", "."]  # fmt: skip


def _ninja_progress(line: str) -> tuple[float | None, str] | None:
    found = re.match(r"\[(\d+)/(\d+)\] (.*)", line)
    return (int(found[1]) / int(found[2]), found[3][:60]) if found else None


# --- all of it ------------------------------------------------------------------------------------


def activate() -> None:
    """.venv's programs come first on PATH, here and in every child."""
    os.environ["PATH"] = f"{VENV / 'bin'}:{os.environ.get('PATH', os.defpath)}"
    os.environ.pop("PYTHONHOME", None)


@contextlib.contextmanager
def only_one() -> Iterator[None]:
    """Hold build/setup.lock, waiting for another set-up to end."""
    BUILD.mkdir(exist_ok=True)
    with (BUILD / "setup.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("  another set-up is running here: waiting for it", file=sys.stderr)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def is_ready(extras: set[str]) -> bool:
    """Whether .venv and the build are up to date."""
    return venv_works() and not missing_requirements(extras) and is_built()


def prepare(needs: set[str]) -> None:
    """Set up what is missing for these needs ('demo', 'bench', 'test'). Raises SetupError."""
    extras = needs & {"demo", "test"}
    missing = missing_packages(wanted_packages(needs))
    if not missing and is_ready(extras):
        return
    try:
        with only_one():
            _prepare_locked(needs, extras)
    except PermissionError as exc:
        owner = "run it once as root, or as the owner of the checkout"
        raise SetupError(f"cannot write {exc.filename}: {owner}") from exc


def _prepare_locked(needs: set[str], extras: set[str]) -> None:
    missing = missing_packages(wanted_packages(needs))
    if not missing and is_ready(extras):
        return  # the set-up that we have waited for has done it
    LOG.write_bytes(b"")
    if missing:
        install_packages(missing)
    if not venv_works():
        make_venv()
    absent = missing_requirements(extras)
    if absent:
        install_requirements(absent)
    if not is_built():
        build()


def prepare_or_exit(program: str, needs: set[str]) -> None:
    """prepare(), with its failures as one line and an exit status."""
    activate()
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # by way of run()
    try:
        prepare(needs)
    except ToolError as exc:
        sys.exit(f"{log_tail()}{program}: {exc} (the whole log: {LOG})")
    except SetupError as exc:
        sys.exit(f"{program}: {exc}")
    except KeyboardInterrupt:
        print(f"\n{program}: interrupted; the next run goes on from here", file=sys.stderr)
        sys.exit(130)


def exec_python(args: Sequence[str]) -> NoReturn:
    """Become .venv's Python; -P keeps the checkout's own zcfs/ from hiding the installed one."""
    os.execv(PYTHON, [str(PYTHON), "-P", *args])


def exec_mountctl(args: Sequence[str]) -> NoReturn:
    """`./mountctl ARGS`: set up, then run the installed command line."""
    if not args or args[0] in ("-h", "--help"):  # a first look at the help sets up nothing
        env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
        argv = [sys.executable, "-P", "-m", "zcfs.cli", *args]
        os.execve(sys.executable, argv, env)
    needs = {args[0]} & {"demo", "bench"}
    if "demo" in needs and os.geteuid() != 0:
        print("mountctl: without root: an unprivileged mount by fusermount3, without passthrough "
              "(kernel engine); run as root for all of it", file=sys.stderr)  # fmt: skip
    prepare_or_exit("mountctl", needs)
    exec_python(["-m", "zcfs.cli", *args])
