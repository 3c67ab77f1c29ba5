"""What the launcher makes of how its processes ended; test_processes.py has real ones."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher import api

from mmseg_cli.errors import ResourceError
from mmseg_cli.training import launch


@pytest.fixture
def ended(monkeypatch):
    """`ended({rank: (exit code, seconds)}, {rank: line})`: launch processes that end so, and say so."""

    def launched(failures, lines=None):
        def run(*_command):
            for rank, line in (lines or {}).items():
                (Path(os.environ[launch.ERRORS]) / f"first-{rank:06d}").write_text(line)
            found = {}
            for rank, (code, seconds) in failures.items():
                found[rank] = ProcessFailure(local_rank=rank, pid=rank + 1, exitcode=code, error_file="none")
                found[rank].timestamp = 1000 + seconds
            raise ChildFailedError("mmseg", found)

        monkeypatch.setattr(api, "elastic_launch", lambda *_: run)
        try:
            return launch.launch(["train"], processes=3)
        finally:
            launch.logging.disable(launch.logging.NOTSET)

    return launched


def test_those_that_torch_kills_after_a_crash_were_not_out_of_memory(ended):
    assert ended({0: (-9, 31), 1: (1, 0), 2: (-9, 31)}) == (1, "")


def test_one_that_was_killed_was_killed(ended):
    with pytest.raises(ResourceError, match="process 2: was ended by SIGKILL, as a machine out of memory does"):
        ended({0: (143, 0), 1: (143, 1), 2: (-9, 0)})


def test_the_first_with_something_to_say_decides(ended):
    lines = {1: "mmseg: error: .: 5 bytes free", 2: "mmseg: error: .: 7 bytes free"}
    assert ended({0: (1, 0), 1: (4, 0), 2: (4, 0)}, lines) == (4, "mmseg: error: .: 5 bytes free\n")
