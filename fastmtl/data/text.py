"""Text files written by other programs: tables, JSON. Errors name the remedy."""

from __future__ import annotations

from pathlib import Path

from ..utils.limited_reads import read_whole

_UTF16 = (b"\xff\xfe", b"\xfe\xff")


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, without a byte-order mark.

    Raises:
        ValueError: it cannot be read, is not a file (pipes never end), is too large, or is not UTF-8; the message names
            the line.
    """
    try:
        data = read_whole(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{path} {error}") from None
    if data.startswith(_UTF16):
        raise ValueError(f"{path} is UTF-16; save it as UTF-8 (in Excel: CSV UTF-8)")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, found = data.count(b"\n", 0, error.start) + 1, data[error.start]
        raise ValueError(
            f"{path}, line {line}: byte 0x{found:02x} is not UTF-8{_in_windows(found)}; save the file as UTF-8"
        ) from None
    if (at := text.find("\0")) >= 0:
        line = text.count("\n", 0, at) + 1
        raise ValueError(f"{path}, line {line}: a zero byte; UTF-16 without its mark, or damaged: save it as UTF-8")
    return text


def _in_windows(byte: int) -> str:
    """The letter that a byte is in the Windows and Latin-1 encodings, if any."""
    letter = bytes([byte]).decode("cp1252", "replace")
    return f" ({letter!r} in Windows-1252 or Latin-1)" if letter.isalpha() else ""
