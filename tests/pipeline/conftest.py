from __future__ import annotations

import pytest

from tests.pipeline.tiny import TinyProject


@pytest.fixture(scope="session")
def done_project(tmp_path_factory: pytest.TempPathFactory) -> TinyProject:
    """A tiny project of one variant after its first whole `dvc repro`. The tests of a file share it, and leave it up to
    date; the first of test_dvc's give it a second variant.
    """
    project = TinyProject(tmp_path_factory.mktemp("pipeline") / "project")
    project.note_imports()
    params = project.read_params()
    params["ablate"]["variants"] = ["residual"]
    project.write_params(params)
    project.first_run = project.repro()  # type: ignore[attr-defined]
    return project
