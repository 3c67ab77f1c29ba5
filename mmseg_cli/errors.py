"""The errors a user can cause, and their exit codes.

Every such error is one line, ``mmseg: error: <path or key>: <what>: <what to do>``, printed by the command line
without a traceback. Anything else that escapes is a bug and shows its traceback.
"""

from __future__ import annotations

from pathlib import Path

DONE = 0
BAD_INPUT = 2
NUMERICAL_STOP = 3
NO_RESOURCE = 4
INTERRUPTED = 128  # plus the signal's number

_MESSAGES = (
    "can't allocate memory",
    "out of memory",
    "DefaultCPUAllocator",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


class MmsegError(Exception):
    """Bad input or usage, or a locked or unwritable output (exit code 2).

    Args:
        where: the file, folder or parameter key at fault.
        what: what is wrong with it, in a few words.
        todo: what the user can do about it.
    """

    exit_code = BAD_INPUT

    def __init__(self, where: str | Path, what: str, todo: str) -> None:
        super().__init__(f"{where}: {what}: {todo}")
        self.where, self.what, self.todo = str(where), what, todo

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuilt, (type(self), self.where, self.what, self.todo, self.exit_code)  # crosses process borders


class Held(MmsegError):
    """Another process holds a lock (exit code 2)."""


class NotCaptured(MmsegError):
    """A network cannot be captured as a CUDA graph (exit code 2)."""


class NumericalStop(MmsegError):
    """Training met NaN or Inf and stopped before the update (exit code 3)."""

    exit_code = NUMERICAL_STOP


class ResourceError(MmsegError):
    """The machine lacks disk or memory (exit code 4)."""

    exit_code = NO_RESOURCE


class Interrupted(MmsegError):
    """A signal ended a command (exit code 128 + the signal's number).

    Args:
        todo: as it stands, for a command that goes on with what is there.
    """

    def __init__(
        self, where: str | Path, signal_number: int, what: str, todo: str = "run the same command again to go on"
    ) -> None:
        super().__init__(where, what, todo)
        self.exit_code = INTERRUPTED + signal_number


def _rebuilt(kind: type[MmsegError], where: str, what: str, todo: str, exit_code: int) -> MmsegError:
    error = kind.__new__(kind)
    MmsegError.__init__(error, where, what, todo)
    error.exit_code = exit_code
    return error


def first_line(error: BaseException) -> str:
    """What an error says, in one line; its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def ran_out(error: BaseException) -> bool:
    """Whether an exception says that the memory, the CPU's or a GPU's, did not suffice; torch's are RuntimeErrors."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in _MESSAGES)
    )
