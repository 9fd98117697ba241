"""The log's form."""

from __future__ import annotations

import logging

from zcfs.fs.log import FORMAT, OneLineFormatter


def record(message: str, exc_info: object = None) -> logging.LogRecord:
    return logging.LogRecord("zcfs.fs", logging.ERROR, "f.py", 1, message, None, exc_info)  # type: ignore[arg-type]


def test_a_record_is_one_line() -> None:
    text = OneLineFormatter(FORMAT).format(record("a\nb\r\nc"))
    assert text.endswith(r"ERROR zcfs.fs: a\nb\r\nc")
    assert "\n" not in text


def test_a_traceback_keeps_its_lines() -> None:
    try:
        raise RuntimeError("why")
    except RuntimeError as error:
        info = (type(error), error, error.__traceback__)
    lines = OneLineFormatter(FORMAT).format(record("it failed", info)).splitlines()
    assert lines[0].endswith("it failed")
    assert lines[1] == "Traceback (most recent call last):"
    assert lines[-1] == "RuntimeError: why"
