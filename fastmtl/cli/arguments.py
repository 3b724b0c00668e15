"""Arguments that no parser takes: what stands first, before all flags, and the lack of any."""

from __future__ import annotations

from ..config import ConfigError


def positional(arguments: list[str], command: str, what: str, hint: str) -> str:
    """Take the first argument off; a `--help` in its place is left for the command's own parser."""
    if arguments and arguments[0] in ("-h", "--help"):
        return what
    if not arguments or arguments[0].startswith("-"):
        raise ConfigError(f"{what} is missing: it comes first, fastmtl {command} {what} ... ({hint}).")
    return arguments.pop(0)


def nothing_more(arguments: list[str], usage: str) -> None:
    """Raise ConfigError for any argument; `--help` prints the usage and exits."""
    if arguments and arguments[0] in ("-h", "--help"):
        print(f"usage: fastmtl {usage}")
        raise SystemExit(0)
    if arguments:
        raise ConfigError(f"usage: fastmtl {usage}; got {' '.join(arguments)!r} as well.")
