"""The curve of a run: history.jsonl, a line for each step and each validation."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from mmseg_cli.files import refusal, write_text

HISTORY = "history.jsonl"


def _read_history(path: Path, *, up_to: int) -> list[dict[str, Any]]:
    """The rows of an interrupted run that its checkpoint has seen."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue  # the last line of a killed process may be half written
        if isinstance(row, dict) and isinstance(row.get("step"), int) and row["step"] <= up_to:
            rows.append(row)
    return rows


class History:
    """The rows of history.jsonl: kept in the work folder line by line, so that a killed run loses none it has saved."""

    def __init__(self, path: Path, *, up_to: int) -> None:
        self.rows = _read_history(path, up_to=up_to)
        write_text(path, self.text())
        self._file = path.open("a", encoding="utf-8")

    def text(self) -> str:
        """All rows as JSON lines."""
        return "".join(json.dumps(row) + "\n" for row in self.rows)

    def add(self, row: Mapping[str, float], *, step: int, data: str | None = None) -> None:
        """Keep one row.

        Args:
            data: the digest of what the step saw, where it is logged.

        Raises:
            ResourceError: the disk is full.
        """
        # JSON has no Infinity, which a gradient that float16 leaves out may be.
        finite = {key: value if math.isfinite(value) else None for key, value in row.items()}
        self.rows.append({"step": step} | finite | ({} if data is None else {"data": data}))
        try:
            self._file.write(json.dumps(self.rows[-1]) + "\n")
            self._file.flush()
        except OSError as error:
            raise refusal(Path(self._file.name), error) from error

    def secure(self) -> None:
        """Make what is written survive a power cut."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise refusal(Path(self._file.name), error) from error

    def close(self) -> None:
        """Close the file; the rows stay. What a full disk did not take has been told before."""
        with suppress(OSError):
            self._file.close()

    def figures(self, step: int) -> dict[str, float] | None:
        """The validation figures of a step, if it was validated."""
        for row in reversed(self.rows):
            if row["step"] == step and "loss" not in row:
                return {key: value for key, value in row.items() if key != "step"}
        return None

    def data(self) -> dict[str, str]:
        """The digests of what the logged steps saw, by step."""
        return {str(row["step"]): row["data"] for row in self.rows if "data" in row}

    def best_step(self) -> int | None:
        """The step with the best validation so far, by its first figure: whose checkpoint is kept, for curiosity.

        Tables never use it.
        """
        validated = [row for row in self.rows if "loss" not in row]
        figure = [(list(row.values())[1], row["step"]) for row in validated]
        return max(figure, key=lambda one: one[0])[1] if figure else None

    def missing(self, up_to: int) -> int:
        """How many of the steps 1 .. up_to have no row: the file was damaged."""
        return up_to - len({row["step"] for row in self.rows if "loss" in row})
