"""Whatever happens to a grid, the table is right or says what is missing."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import trees
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mmseg_cli import paths as places
from mmseg_cli.ablation import report
from mmseg_cli.errors import MmsegError
from mmseg_cli.params import load
from mmseg_cli.paths import run_name
from tests import evidence as made
from tests.conftest import make_project

FILES = ("metrics.json", "confusion.npz", "certificate.json")
STEPS = st.one_of(
    st.tuples(st.just("drop run"), st.integers(0, 9), st.integers(0, 9)),
    st.tuples(st.just("make run"), st.integers(0, 9), st.integers(0, 9)),
    st.tuples(st.just("make all"), st.just(0), st.just(0)),
    st.tuples(st.just("add seed"), st.integers(0, 9), st.just(0)),
    st.tuples(st.just("drop seed"), st.integers(0, 9), st.just(0)),
    st.tuples(st.just("rename variant"), st.integers(0, 9), st.just(0)),
    st.tuples(st.just("add variant"), st.integers(0, 9), st.just(0)),
    st.tuples(st.just("drop variant"), st.integers(0, 9), st.just(0)),
    st.tuples(st.just("reorder"), st.just(0), st.just(0)),
    st.tuples(st.just("swap runs"), st.integers(0, 9), st.integers(0, 9)),
    st.tuples(st.just("drop cost"), st.just(0), st.just(0)),
)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A project with a whole grid, which each history begins from."""
    root = make_project(tmp_path_factory.mktemp("histories") / "project")
    content = yaml.safe_load((root / "params.yaml").read_text())
    content["ablate"] |= {"variants": ["residual", "mbconv"], "seeds": [0, 1]}
    (root / "params.yaml").write_text(yaml.safe_dump(content))
    paths = places.find(preset="demo", root=root)
    made.make(paths, load(paths.params), images=5)
    return root


class History:
    """A project to which things happen, and what its table must say."""

    def __init__(self, root: Path) -> None:
        self.paths = places.find(preset="demo", root=root)
        self.names = 0

    def edit(self, change) -> None:
        content = yaml.safe_load(self.paths.params.read_text())
        change(content)
        self.paths.params.write_text(yaml.safe_dump(content, sort_keys=False))

    def grid(self):
        section = load(self.paths.params).ablate
        return section.variants, section.seeds

    def make_run(self, variant: str, seed: int) -> None:
        counts = made.confusions(images=5, skill=0.7, noise=0.05, seed=abs(hash((len(variant), seed))) % 1000)
        made.write_run(self.paths, load(self.paths.params), variant=variant, seed=seed, counts=counts)

    def happens(self, what: str, first: int, second: int) -> None:
        variants, seeds = self.grid()
        variant, seed = variants[first % len(variants)], seeds[second % len(seeds)]
        folder = self.paths.evidence / run_name(variant, seed)
        match what:
            case "drop run":
                shutil.rmtree(folder, ignore_errors=True)
            case "make run":
                self.make_run(variant, seed)
            case "make all":
                for name in variants:
                    for number in seeds:
                        self.make_run(name, number)
                made.write_cost(self.paths, load(self.paths.params))
            case "add seed":
                if first not in seeds:
                    self.edit(lambda p: p["ablate"]["seeds"].append(first))
            case "drop seed":
                if len(seeds) > 1:
                    self.edit(lambda p: p["ablate"]["seeds"].pop(first % len(seeds)))
            case "rename variant":
                self.names += 1
                new = f"renamed{self.names}"
                place = first % len(variants)
                self.edit(lambda p: p["variants"].update({new: p["variants"][variant]}))
                self.edit(lambda p: p["ablate"]["variants"].__setitem__(place, new))
            case "add variant":
                name = ("mmbconv", "residual", "mbconv")[first % 3]
                if name not in variants:
                    self.edit(lambda p: p["ablate"]["variants"].append(name))
            case "drop variant":
                if len(variants) > 1:
                    self.edit(lambda p: p["ablate"]["variants"].pop(first % len(variants)))
            case "reorder":
                self.edit(lambda p: p["ablate"]["variants"].reverse())
            case "swap runs":
                other = self.paths.evidence / run_name(
                    variants[-1 - first % len(variants)], seeds[-1 - second % len(seeds)]
                )
                if folder.is_dir() and other.is_dir() and folder != other:
                    aside = folder.with_name("aside")
                    folder.rename(aside)
                    other.rename(folder)
                    aside.rename(other)
            case "drop cost":
                (self.paths.evidence / "cost.json").unlink(missing_ok=True)

    def missing(self) -> set[str]:
        variants, seeds = self.grid()
        found = set() if (self.paths.evidence / "cost.json").is_file() else {"cost.json"}
        for run in {run_name(v, s) for v in variants for s in seeds}:
            gone = {f"{run}/{file}" for file in FILES if not (self.paths.evidence / run / file).is_file()}
            found |= {f"{run}/"} if len(gone) == len(FILES) else gone
        return found

    def misplaced(self) -> bool:
        variants, seeds = self.grid()
        for variant in variants:
            for seed in seeds:
                run = json.loads((self.paths.evidence / run_name(variant, seed) / "metrics.json").read_text())["run"]
                if (run["variant"], run["seed"]) != (variant, seed):
                    return True
        measured = json.loads((self.paths.evidence / "cost.json").read_text())["variants"]
        return not set(variants) <= set(measured)

    def by_hand(self, variant: str, seed: int) -> float:
        """mIoU in percent, from the file and by loops."""
        with np.load(self.paths.evidence / run_name(variant, seed) / "confusion.npz") as content:
            matrix = np.zeros(16, dtype=np.int64)
            for cell, value in zip(content["confusion.cells"], content["confusion.values"], strict=True):
                matrix[cell] += value
        matrix = matrix.reshape(4, 4)
        iou = [matrix[k, k] / (matrix[k].sum() + matrix[:, k].sum() - matrix[k, k]) for k in range(4)]
        return 100 * float(np.mean(iou))


@pytest.fixture(autouse=True, scope="module")
def _no_charts():
    """They take most of the time, and have tests of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report.figures, "draw", lambda evidence, rows: {})
        yield


@settings(max_examples=30)
@given(steps=st.lists(STEPS, min_size=1, max_size=8))
def test_the_table_is_right_or_says_what_is_missing(start, tmp_path_factory, steps):
    history = History(shutil.copytree(start, tmp_path_factory.mktemp("history") / "project"))
    for step in steps:
        history.happens(*step)
        before = {name: text for name, text in trees.contents(history.paths.reports).items() if "evidence/" not in name}
        missing = history.missing()
        try:
            report.build(history.paths, load(history.paths.params))
        except MmsegError as error:
            after = {n: text for n, text in trees.contents(history.paths.reports).items() if "evidence/" not in n}
            assert after == before
            if missing:
                assert set(error.what.removeprefix("missing ").split(", ")) == missing
            else:
                assert history.misplaced(), str(error)
            continue
        assert not missing
        assert not history.misplaced()
        variants, seeds = history.grid()
        with (history.paths.reports / "ablation.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["variant"] for row in rows] == variants
        values = {(v, s): history.by_hand(v, s) for v in variants for s in seeds}
        for row in rows:
            own = [values[row["variant"], seed] for seed in seeds]
            assert [float(row[f"mean_iou_s{seed}"]) for seed in seeds] == pytest.approx(own, abs=1e-9)
            assert [name for name in row if name.startswith("mean_iou_s")] == [f"mean_iou_s{seed}" for seed in seeds]
            assert float(row["mean_iou"]) == pytest.approx(np.mean(own), abs=1e-9)
            if row["variant"] != variants[0]:
                differences = [values[row["variant"], seed] - values[variants[0], seed] for seed in seeds]
                assert float(row["difference"]) == pytest.approx(np.mean(differences), abs=1e-9)
                assert (row["verdict"] == "no verdict") == (len(seeds) < 3)
        page = (history.paths.reports / "ablation.md").read_text()
        assert all(f"[{variant}](certificates/{variant}.json)" in page for variant in variants)
        certificates = sorted(file.stem for file in (history.paths.reports / "certificates").iterdir())
        assert certificates == sorted(variants)
