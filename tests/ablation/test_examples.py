from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import stores
import trees
from PIL import Image

from mmseg_cli.ablation import examples
from mmseg_cli.data.labels import LabelSpace
from mmseg_cli.evaluation import evaluate, evidence, metrics, official
from mmseg_cli.evaluation.evidence import Collector, Evidence
from mmseg_cli.paths import Paths, run_name

CLASSES = ["road", "car", "sky", "pole"]
VARIANTS = ["residual", "mbconv", "mmbconv"]
SEEDS = [0, 3]
IMAGES = 8
OWN_IDS = np.array([10, 11, 12, 13], dtype=np.uint8)  # as `stores.space` numbers them


def labels():
    """Two classes of four in each image, at other places; a third is only ever predicted. The last is all ignored."""
    rng = np.random.default_rng(0)
    found = [rng.choice(np.array([k % 3, 3], dtype=np.uint8), (12, 16), p=[0.8, 0.2]) for k in range(IMAGES)]
    for label_HW in found:
        label_HW[:2] = 255
    found[-1][:] = 255
    return found


def predicted(variant, seed):
    """Each variant is wrong in a share of the pixels that differs from image to image."""
    rng = np.random.default_rng([VARIANTS.index(variant), seed])
    found = []
    for label_HW in labels():
        wrong = rng.random(label_HW.shape) < rng.uniform(0, 0.5)
        noise = rng.integers(0, len(CLASSES), label_HW.shape, dtype=np.uint8)
        found.append(np.where(wrong | (label_HW == 255), noise, label_HW))
    return found


@pytest.fixture
def paths(tmp_path):
    """A store, what was counted, and the predictions of a grid of three variants and two seeds."""
    paths = Paths(root=tmp_path / "project", preset="toy")
    made = stores.make_segmentation(paths.store("streets"), {"val": labels()}, names=CLASSES)
    for variant in VARIANTS:
        for seed in SEEDS:
            collector = Collector()
            folder = paths.run("evaluate", run_name(variant, seed)) / "predictions"
            folder.mkdir(parents=True)
            for name, label_HW, predicted_HW in zip(made.names("val"), labels(), predicted(variant, seed), strict=True):
                Image.fromarray(OWN_IDS[predicted_HW]).save(folder / f"{name}.png")
                collector.add({"confusion": metrics.confusion(label_HW, predicted_HW, classes=len(CLASSES))})
            file = paths.evidence / run_name(variant, seed) / "confusion.npz"
            evidence.save(file, Evidence(CLASSES, made.names("val"), collector.counts()))
    return paths


def write(paths, **changes):
    arguments = {"variants": VARIANTS, "seeds": SEEDS, "dataset": "streets"}
    return examples.write(paths=paths, **(arguments | changes))


def naive_iou(label_HW, predicted_HW):
    """By loops over pixels and the classes that are in the truth."""
    known = [(int(t), int(p)) for t, p in zip(label_HW.ravel(), predicted_HW.ravel(), strict=True) if t != 255]
    values = []
    for k in {truth for truth, _ in known}:
        both = sum(truth == prediction == k for truth, prediction in known)
        values.append(both / sum(k in pair for pair in known))
    return sum(values) / len(values) if values else None


def naive_choice(variant, kind, *, each):
    """[(image, difference)] by loops."""
    differences = []
    for number in range(IMAGES):
        by_seed = []
        for seed in SEEDS:
            pair = [naive_iou(labels()[number], predicted(name, seed)[number]) for name in (variant, "residual")]
            by_seed.append(None if None in pair else pair[0] - pair[1])
        if None not in by_seed:
            differences.append((number, sum(by_seed) / len(by_seed)))
    differences.sort(key=lambda pair: -pair[1] if kind == "gain" else pair[1])
    return [(n, d) for n, d in differences[:each] if (d > 0 if kind == "gain" else d < 0)]


# ------------------------------------------------------------------------------------------------ choosing


def chosen(paths, variant, *, each=3):
    counted = {
        (name, seed): evidence.load(paths.evidence / run_name(name, seed) / "confusion.npz").counts["confusion"]
        for name in VARIANTS
        for seed in SEEDS
    }
    images = {run: examples.image_iou(confusion) for run, confusion in counted.items()}
    return examples.choices(images, variant=variant, baseline="residual", seeds=SEEDS, each=each)


def test_an_images_iou_is_over_the_classes_in_its_truth(paths):
    for variant in VARIANTS:
        file = paths.evidence / run_name(variant, 3) / "confusion.npz"
        found = examples.image_iou(evidence.load(file).counts["confusion"])
        expected = [naive_iou(*pair) for pair in zip(labels(), predicted(variant, 3), strict=True)]
        assert expected[-1] is None
        assert np.isnan(found[-1])
        assert found[:-1].tolist() == pytest.approx(expected[:-1], abs=1e-12)


@pytest.mark.parametrize("each", [1, 3, 20])
@pytest.mark.parametrize("variant", ["mbconv", "mmbconv"])
def test_the_images_are_those_of_a_naive_loop(paths, variant, each):
    found = chosen(paths, variant, each=each)
    for kind in ("gain", "loss"):
        expected = naive_choice(variant, kind, each=each)
        assert expected
        own = [one for one in found if one.kind == kind]
        assert [one.position for one in own] == [number for number, _ in expected]
        assert [one.means[1] - one.means[0] for one in own] == pytest.approx([size for _, size in expected], abs=1e-12)
        assert [one.rank for one in own] == list(range(1, len(expected) + 1))


def test_the_seed_that_is_shown_is_the_one_nearest_to_the_mean():
    def images(*by_seed):
        return {("b", s): np.full(1, 0.5) for s in range(3)} | {("v", s): np.array([x]) for s, x in enumerate(by_seed)}

    (one,) = examples.choices(images(0.9, 0.65, 0.6), variant="v", baseline="b", seeds=[0, 1, 2], each=3)
    assert (one.kind, one.seed, one.shown) == ("gain", 1, (0.5, 0.65))
    (one,) = examples.choices(images(0.1, 0.4, 0.2), variant="v", baseline="b", seeds=[0, 1, 2], each=3)
    assert (one.kind, one.seed) == ("loss", 2)
    assert examples.choices(images(0.5, 0.5, 0.5), variant="v", baseline="b", seeds=[0, 1, 2], each=3) == []


# ------------------------------------------------------------------------------------------------ what is written


def test_pictures_and_their_list_go_to_the_run_folder_and_nowhere_else(paths):
    before = trees.snapshot(paths.root)
    found = write(paths)
    assert found.reason is None
    folder = paths.root / "runs" / "toy" / "ablate" / "examples"
    assert found.files[0] == folder / "index.md"
    pictures = [file.relative_to(folder).as_posix() for file in found.files[1:]]
    assert pictures == [
        f"{variant}/{kind}-{rank}.png"
        for variant in ("mbconv", "mmbconv")
        for kind in ("gain", "loss")
        for rank in range(1, 1 + len(naive_choice(variant, kind, each=3)))
    ]
    after = trees.snapshot(paths.root)
    new = {path for path in after if path.startswith("runs/toy/ablate")}
    assert {path: after[path] for path in after if path not in new | {"runs/toy"}} == {
        path: before[path] for path in before if path != "runs/toy"
    }
    files = {path for path in new if after[path][2] != "folder"}
    assert files == {file.relative_to(paths.root).as_posix() for file in found.files}


def test_the_list_has_every_picture_with_its_image_and_figures(paths):
    found = write(paths)
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in found.files[0].read_text().splitlines()
        if line.startswith("| [")
    ]
    expected = []
    for variant in ("mbconv", "mmbconv"):
        for one in chosen(paths, variant):
            before, after = (100 * value for value in one.means)
            expected.append(
                [
                    f"[{variant}, {one.kind} {one.rank}]({one.file})",
                    f"val{one.position}",
                    f"{before:.2f}",
                    f"{after:.2f}",
                    f"{after - before:+.2f}",
                    str(one.seed),
                ]
            )
    assert lines == expected
    for line, file in zip(lines, found.files[1:], strict=True):
        assert f"({file.parent.name}/{file.name})" in line[0]


def test_a_second_time_gives_the_same_bytes_in_place_of_the_first(paths):
    first = write(paths)
    folder = first.files[0].parent
    before = trees.contents(folder)
    (folder / "old.png").write_bytes(b"of an earlier grid")
    assert write(paths) == first
    assert trees.contents(folder) == before
    assert write(paths, each=1).files == [file for file in first.files if file.stem in ("index", "gain-1", "loss-1")]
    assert [path.name for path in folder.parent.iterdir()] == ["examples"]


def test_a_dataset_without_ids_has_predictions_of_train_ids(paths):
    manifest = paths.store("streets") / "manifest.json"
    content = json.loads(manifest.read_text())
    content["label_space"]["ids"] = [-1] * len(CLASSES)
    manifest.write_text(json.dumps(content))
    for file in paths.root.glob("runs/toy/evaluate/*/predictions/*.png"):
        Image.fromarray(np.asarray(Image.open(file)) - np.uint8(10)).save(file)
    assert write(paths).reason is None


@pytest.mark.parametrize("ids", [(10, 11, 12, 13), (-1, -1, -1, -1), (3, 0, 7, 26)])
def test_predictions_are_read_as_evaluate_reads_them(tmp_path, ids):
    space = LabelSpace("toy", tuple(CLASSES), ((0, 0, 0),) * 4, ids)
    written = official.written_ids(space)[np.arange(4, dtype=np.uint8).reshape(2, 2)]
    Image.fromarray(written).save(tmp_path / "a.png")
    assert examples.PREDICTIONS == evaluate.PREDICTIONS
    assert official.read_png(tmp_path / "a.png", space).tolist() == [[0, 1], [2, 3]]


# ------------------------------------------------------------------------------------------------ drawing


def test_where_two_differ():
    truth = np.array([[0, 1, 2, 255, 1]], dtype=np.uint8)
    baseline = np.array([[0, 0, 2, 0, 2]], dtype=np.uint8)
    variant = np.array([[0, 1, 1, 1, 3]], dtype=np.uint8)
    only_variant, only_baseline = examples.differing(truth, baseline, variant)
    assert only_variant.tolist() == [[False, True, False, False, False]]
    assert only_baseline.tolist() == [[False, False, True, False, False]]


@pytest.mark.parametrize(
    ("height", "width", "image", "classes"),
    [(12, 16, (12, 16), 4), (100, 40, (100, 40), 60), (1024, 2048, (512, 1024), 19), (3, 900, (3, 900), 4)],
    ids=["tiny", "upright", "large", "flat"],
)
def test_a_sheet_shows_everything_at_any_size(height, width, image, classes):
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, classes, (3, -(-height // 16), -(-width // 16)), dtype=np.uint8)
    truth, baseline, variant = coarse.repeat(16, axis=1).repeat(16, axis=2)[:, :height, :width].copy()
    truth[: max(1, height // 16)] = 255
    space = LabelSpace(
        "toy",
        tuple(f"class {k} with a very long name, longer than there is room" for k in range(classes)),
        tuple((int(k) * 4, 200, 255 - int(k) * 4) for k in range(classes)),
        tuple(range(classes)),
    )
    one = examples.Choice("mmbconv-separable", "loss", 2, 0, (0.4, 0.3), 1, (0.42, 0.31))
    sheet = examples.sheet(
        one,
        name="a\nname | with * and \u2028 letters " * 9,
        baseline="residual",
        seeds=[0, 1],
        each=3,
        image_HWC=trees.photo(rng, *image),
        truth_HW=truth,
        of_baseline_HW=baseline,
        of_variant_HW=variant,
        space=space,
    )
    pixels = np.asarray(sheet)
    assert 900 < sheet.width < 2000
    edges = [pixels[:3], pixels[-3:], pixels[:, :3], pixels[:, -3:]]
    assert all((edge == 255).all() for edge in edges)
    shown = set(map(tuple, pixels.reshape(-1, 3).tolist()))
    assert {examples.ONLY_VARIANT, examples.ONLY_BASELINE, (0, 0, 0)} <= shown
    colours = {tuple(space.colours[k]) for k in np.unique([baseline, variant])}
    assert colours <= shown


# ------------------------------------------------------------------------------------------------ what may be missing


def _no_store(paths):
    (paths.store("streets") / "manifest.json").unlink()
    return "manifest.json: missing"


def _damaged_store(paths):
    file = paths.store("streets") / "val.records"
    file.write_bytes(bytes(len(file.read_bytes())))
    return "is damaged"


def _no_records(paths):
    (paths.store("streets") / "val.records").unlink()
    return "val.records: cannot be read"


def _other_classes(paths):
    manifest = paths.store("streets") / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"pole"', '"tree"'))
    return "has other classes than were counted"


def _no_val(paths):
    manifest = paths.store("streets") / "manifest.json"
    content = json.loads(manifest.read_text())
    content["splits"] = {"train": content["splits"]["val"]}
    manifest.write_text(json.dumps(content))
    return "has no split 'val'"


def _all_predictions(paths):
    return list((paths.run("evaluate", "residual-s0") / "predictions").iterdir()) + list(
        (paths.run("evaluate", "residual-s3") / "predictions").iterdir()
    )


def _no_predictions(paths):
    for file in _all_predictions(paths):
        file.unlink()
    return "missing"


def _no_pngs(paths):
    for file in _all_predictions(paths):
        file.write_bytes(file.read_bytes()[:60])
    return "cannot be read"


def _other_predictions(paths):
    for file in _all_predictions(paths):
        Image.fromarray(np.full((12, 16), 11, dtype=np.uint8)).save(file)
    return "is not the prediction that was counted"


def _other_size(paths):
    for file in _all_predictions(paths):
        Image.fromarray(np.full((6, 8), 11, dtype=np.uint8)).save(file)
    return "is not the prediction that was counted"


def _no_ids(paths):
    for file in _all_predictions(paths):
        Image.fromarray(np.full((12, 16), 200, dtype=np.uint8)).save(file)
    return "is not the prediction that was counted"


@pytest.mark.parametrize(
    "spoil",
    [
        _no_store,
        _damaged_store,
        _no_records,
        _other_classes,
        _no_val,
        _no_predictions,
        _no_pngs,
        _other_predictions,
        _other_size,
        _no_ids,
    ],
    ids=lambda spoil: spoil.__name__.strip("_"),
)
def test_where_something_is_missing_there_is_a_reason_and_nothing_changes(paths, spoil):
    before = write(paths).files[0].parent
    earlier = trees.contents(before)
    words = spoil(paths)
    found = write(paths)
    assert found.files == []
    assert words in found.reason
    assert "\n" not in found.reason
    assert trees.contents(before) == earlier
    assert [path.name for path in before.parent.iterdir()] == ["examples"]


def test_a_laptop_with_only_the_evidence_is_left_as_it_is(tmp_path, paths):
    laptop = Paths(root=tmp_path / "laptop", preset="toy")
    laptop.reports.parent.mkdir(parents=True)
    paths.reports.rename(laptop.reports)
    before = trees.snapshot(laptop.root)
    found = write(laptop)
    assert found.files == []
    assert found.reason.endswith("manifest.json: missing")
    assert trees.snapshot(laptop.root) == before


def test_one_variant_has_nothing_to_be_compared_with(paths):
    assert write(paths, variants=["mbconv"]) == examples.Examples(
        [], "there is no variant to compare with the baseline"
    )
    same = write(paths, variants=["mbconv", "mbconv"])
    assert same == examples.Examples([], "no image tells the variants apart")


def test_torch_is_not_imported(paths):
    code = (
        "import sys; from pathlib import Path; sys.modules['torch'] = None\n"
        "from mmseg_cli.ablation import examples, figures; from mmseg_cli.paths import Paths\n"
        f"found = examples.write(paths=Paths(Path({str(paths.root)!r}), 'toy'), variants={VARIANTS}, seeds={SEEDS},"
        " dataset='streets')\n"
        "assert found.reason is None and len(found.files) > 1, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
