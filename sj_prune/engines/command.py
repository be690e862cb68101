"""Run a compiler for a bounded time."""

from __future__ import annotations

import math
import os
import signal
import subprocess
from collections.abc import Sequence

_SECONDS = 20.0  # a library takes about one


class CommandError(RuntimeError):
    """A compiler failed; the message has its output."""


class HangingError(CommandError):
    """A compiler did not end in time."""


def bound() -> float:
    """Return the seconds after which a compiler is given up, ``SJ_PRUNE_COMPILE_TIMEOUT``.

    Raises:
        ValueError: if that is no positive number.
    """
    text = os.environ.get("SJ_PRUNE_COMPILE_TIMEOUT") or str(_SECONDS)
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise ValueError(
            f"Expected SJ_PRUNE_COMPILE_TIMEOUT to be a positive number of seconds but got {text!r}"
        )
    return seconds


def run(command: Sequence[str], patience: float = 1.0) -> None:
    """Run a command; whatever ends the wait for it ends its whole process group.

    Args:
        command: program and arguments.
        patience: how many times `bound` it may take.

    Raises:
        CommandError: if it fails.
        HangingError: if it takes longer than `bound`.
        OSError: if it does not start.
    """
    seconds = patience * bound()
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            _, said = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            _kill(process)
            raise HangingError(
                f"Expected {command[0]} to compile within {seconds:g} s but it hangs: set CXX to "
                "another compiler, or SJ_PRUNE_COMPILE_TIMEOUT to more seconds"
            ) from None
        except BaseException:
            _kill(process)
            raise
    if process.returncode:
        raise CommandError(
            f"Expected {command[0]} to compile but it ended with {process.returncode}: "
            f"{_shortened(said.strip())}"
        )


def _shortened(said: str, most: int = 1000) -> str:
    """Return both ends of what a compiler said: the first error leads to the others."""
    return said if len(said) <= 2 * most else f"{said[:most]} [...] {said[-most:]}"


def _kill(process: subprocess.Popen[str]) -> None:
    """Kill a process and all that it started: a compiler's driver waits for its parts."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (AttributeError, ProcessLookupError):  # not a POSIX system, or it has ended
        process.kill()
