"""mountctl: the list of verbs, and what is common to all: errors, exit status."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

from zcfs import __version__
from zcfs.errors import ZcfsError

VERBS = {
    "mount": "zcfs.cli.mount",
    "umount": "zcfs.cli.umount",
    "list": "zcfs.cli.list",
    "status": "zcfs.cli.status",
    "stats": "zcfs.cli.stats",
    "pin": "zcfs.cli.pin",
    "unpin": "zcfs.cli.unpin",
    "probe": "zcfs.cli.probe",
    "run": "zcfs.cli.run",
    "bench": "zcfs.cli.bench",
    "demo": "zcfs.cli.demo",
    "install-helper": "zcfs.cli.install_helper",
}
EPILOG = """\
mountctl VERB --help tells more. Exit status: 0 done, 1 cannot, 2 wrong usage."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


class Screen(argparse.RawDescriptionHelpFormatter):
    """A line for each verb, the longest too: argparse forgets how far verbs are indented."""

    def add_argument(self, action: argparse.Action) -> None:
        super().add_argument(action)
        self._action_max_length = max(self._action_max_length, 4 + max(map(len, VERBS)))


def build_parser() -> argparse.ArgumentParser:
    """The parser of every verb."""
    parser = Parser(
        prog="mountctl",
        description="Mounts a directory of database files at the speed of its disk.",
        epilog=EPILOG,
        allow_abbrev=False,
        formatter_class=Screen,
    )
    parser.add_argument("--version", action="version", version=f"zcfs {__version__}")
    verbs = parser.add_subparsers(metavar="VERB", required=True, parser_class=Parser)
    for name, module_name in VERBS.items():
        module = importlib.import_module(module_name)
        sub = verbs.add_parser(
            name, help=module.HELP, description=module.__doc__, allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        module.configure(sub)
        sub.set_defaults(run=module.run, parser=sub)
    return parser


def split_command(argv: Sequence[str]) -> tuple[list[str], list[str] | None]:
    """Cut `run SRC -- CMD ARGS` at the first `--`; CMD's words are none of argparse's business."""
    words = list(argv)
    if words[:1] != ["run"] or "--" not in words:
        return words, None
    cut = words.index("--")
    return words[:cut], words[cut + 1 :]


def end(number: int, frame: FrameType | None) -> NoReturn:
    """A signal that ends us does it by way of every `finally`: no mount is left behind."""
    sys.exit(128 + number)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb. Returns the exit status."""
    if argv is None:
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, end)
    words, command = split_command(sys.argv[1:] if argv is None else argv)
    parser = build_parser()
    if not words:
        parser.print_help()
        return 2
    args, unknown = parser.parse_known_args(words)
    if unknown:  # of the verb's parser: parse_args() would point to `mountctl --help`
        args.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    args.command = command
    try:
        status: int = args.run(args)
        sys.stdout.flush()
        return status
    except ZcfsError as exc:
        print(f"mountctl: {exc}", file=sys.stderr)
        return exc.status
    except BrokenPipeError:  # the reader, `head` perhaps, has seen enough
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except OSError as exc:
        where = f"{exc.filename}: " if exc.filename else ""
        print(f"mountctl: {where}{exc.strerror or exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("mountctl: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
