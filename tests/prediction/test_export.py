"""`mmseg export`: the files give the network's labels at every size, say all that is needed, and run without torch."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import trees
from PIL import Image

from mmseg_cli.data.labels import LabelSpace
from mmseg_cli.data.store import open_store
from mmseg_cli.errors import MmsegError
from mmseg_cli.evaluation import evidence, inference, metrics
from mmseg_cli.files import read_json, sha256
from mmseg_cli.models import fold, resizing, unet, weights
from mmseg_cli.prediction import card, export
from mmseg_cli.prediction.onnx import KEY, open_onnx
from tests.conftest import run_inside

RUN = Path("runs/demo/train/mmbconv-s0")
SIZES = [(1, 97, 161), (2, 64, 64), (3, 33, 100), (1, 1, 1), (2, 1, 50)]


@pytest.fixture(scope="module")
def exported(_trained, tmp_path_factory) -> Path:
    """A project with both files of a trained run, `net.onnx` and `net.pt2`, and its card, `net.md`."""
    root = Path(shutil.copytree(_trained, tmp_path_factory.mktemp("exported") / "project"))
    with contextlib.chdir(root):
        done = run_inside("export", "--run", RUN, "--out", "net.onnx", "--format", "onnx", "--format", "torch")
        assert done.code == 0, done.err
        (root / "said").write_text(done.out)
    return root


@pytest.fixture
def poisoned(tmp_path):
    """Variables with which importing torch or onnx fails."""
    folder = tmp_path / "poison"
    folder.mkdir()
    for name in ("torch", "torchvision", "onnx", "onnxscript"):
        (folder / f"{name}.py").write_text(f"raise RuntimeError('{name} was imported')\n")
    repository = Path(__file__).resolve().parents[2]
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(repository)])}


def forward_of(form, file):
    return export.opened(form, file.read_bytes(), where=file, threads=1)


def logits_of(network, x_BCHW):
    with torch.inference_mode():
        return network.eval()(torch.from_numpy(x_BCHW)).numpy()


def noise(size, seed=0):
    batch, height, width = size
    return np.random.default_rng(seed).normal(size=(batch, 3, height, width)).astype(np.float32)


def assert_the_same(found_BKHW, expected_BKHW):
    assert found_BKHW.shape == expected_BKHW.shape
    assert found_BKHW.dtype == np.float32
    np.testing.assert_allclose(found_BKHW, expected_BKHW, rtol=0, atol=1e-4 * np.abs(expected_BKHW).max())


# --------------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("form", ["onnx", "torch"])
def test_one_file_serves_every_batch_height_and_width(exported, form, size):
    network, _ = weights.load_network(exported / RUN)
    forward = forward_of(form, exported / f"net{export.FORMATS[form]}")
    assert_the_same(forward(noise(size)), logits_of(network, noise(size)))


@pytest.mark.parametrize(
    "arguments",
    [
        {
            "block": "residual",
            "layout": "pyramid",
            "norm": "group",
            "stem_stride": 1,
            "levels": 3,
            "activation": "relu",
        },
        {
            "block": "mbconv",
            "layout": "uniform",
            "norm": "batch",
            "stem_stride": 4,
            "levels": 2,
            "activation": "gelu",
        },
        pytest.param(
            {
                "block": "mbconv",
                "layout": "uniform",
                "norm": "batch",
                "stem_stride": 2,
                "levels": 1,
                "activation": "hardswish",
            },
            marks=pytest.mark.slow,
        ),
    ],
    ids=lambda arguments: f"{arguments['block']}-{arguments['norm']}-{arguments['activation']}",
)
def test_every_kind_of_network_is_exported(arguments, tmp_path):
    torch.manual_seed(0)
    network = unet.build_network(
        task="segmentation", num_classes=4, width=8, depth=1, expansion=2.0, se_ratio=0.25, **arguments
    )
    resize = resizing.resize
    made = export.program(fold.fold_norms(network))
    assert resizing.resize is resize
    for form, write in (("onnx", export.as_onnx), ("torch", export.as_torch)):
        file = tmp_path / f"net{export.FORMATS[form]}"
        file.write_bytes(write(made, {}))
        forward = forward_of(form, file)
        for size in SIZES:
            assert_the_same(forward(noise(size)), logits_of(network, noise(size)))


def test_a_shuffle_of_channels_is_exported_for_every_size():
    torch.manual_seed(0)
    settings = {"expansion": 2.0, "se_ratio": 0.25, "norm": "batch", "activation": "relu"}
    size = {"width": 8, "depth": 1, "levels": 2, "stem_stride": 2, "layout": "uniform"}
    network = unet.build_network(task="segmentation", num_classes=4, block="mmbconv-grouped", **size, **settings)
    forward = export.program(fold.fold_norms(network)).module()
    for size in SIZES:
        assert_the_same(forward(torch.from_numpy(noise(size))).detach().numpy(), logits_of(network, noise(size)))


def test_the_files_say_what_a_program_must_know(exported):
    record = weights.read_record(exported / RUN)
    forward, says = open_onnx(exported / "net.onnx", threads=1)
    extra = {KEY: ""}
    torch.export.load(exported / "net.pt2", extra_files=extra)
    assert json.loads(extra[KEY]) == says
    assert LabelSpace.from_json(says["label_space"]) == LabelSpace.from_json(record["label_space"])
    assert (tuple(says["mean"]), tuple(says["std"])) == (inference.MEAN, inference.STD)
    assert says["weights_sha256"] == sha256(exported / RUN / "model.safetensors")
    assert says["bytes_per_pixel"] > 4 * len(record["label_space"]["classes"])
    assert {key: says["run"][key] for key in export.RUN_KEYS} == {key: record[key] for key in export.RUN_KEYS}
    assert "image: float32 (batch, 3, height, width)" in says["input"]
    assert forward(noise((1, 8, 8))).shape == (1, 19, 8, 8)


def test_the_files_name_their_sizes_and_no_place_on_this_machine(exported):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(exported / "net.onnx"))
    assert [(x.name, x.shape) for x in session.get_inputs()] == [("image", ["batch", 3, "height", "width"])]
    assert [(y.name, y.shape) for y in session.get_outputs()] == [("logits", ["batch", 19, "height", "width"])]
    with zipfile.ZipFile(exported / "net.pt2") as archive:
        contents = [archive.read(name) for name in archive.namelist()]
    for content in [(exported / "net.onnx").read_bytes(), *contents]:
        assert b"unet.py" not in content
        assert os.fsencode(Path(__file__).resolve().parents[2]) not in content


def test_batch_norms_are_folded(exported):
    import onnx

    nodes = {node.op_type for node in onnx.load(exported / "net.onnx").graph.node}
    assert "Conv" in nodes
    assert "BatchNormalization" not in nodes
    made = torch.export.load(exported / "net.pt2")
    assert not any("batch_norm" in str(node.target) for node in made.graph.nodes)


def test_a_file_runs_without_torch(exported, poisoned):
    network, _ = weights.load_network(exported / RUN)
    np.save(exported / "x.npy", noise((1, 40, 56)))
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "import numpy as np\n"
        "from mmseg_cli.prediction.onnx import open_onnx\n"
        "forward, says = open_onnx(Path('net.onnx'), threads=1)\n"
        "np.save('y.npy', forward(np.load('x.npy')))\n"
        "print(says['label_space']['classes'][0], 'torch' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=exported, env=poisoned, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "road False\n"), done.stderr
    assert_the_same(np.load(exported / "y.npy"), logits_of(network, noise((1, 40, 56))))


# ---------------------------------------------------------------------------------------------------- files not of ours


@pytest.mark.parametrize("damage", ["missing", "folder", "text", "empty", "cut", "foreign", "metadata", "lacking"])
def test_what_is_not_ours_is_one_line(exported, tmp_path, damage):
    import onnx

    file = tmp_path / "net.onnx"
    content = (exported / "net.onnx").read_bytes()
    model = onnx.load_from_string(content)
    del model.metadata_props[:]
    match damage:
        case "folder":
            file.mkdir()
        case "text" | "empty" | "cut":
            file.write_bytes({"text": b"not a network", "empty": b"", "cut": content[: len(content) // 2]}[damage])
        case "foreign" | "metadata" | "lacking":
            if damage != "foreign":
                model.metadata_props.add(key=KEY, value="{" if damage == "metadata" else '{"mean": [0, 0, 0]}')
            file.write_bytes(model.SerializeToString())
    expected = {
        "missing": "there is no such file",
        "folder": "is not a file",
        "foreign": "does not say how images are normalised",
        "metadata": "its metadata lack label_space, mean, std",
        "lacking": "its metadata lack label_space, std",
    }
    with pytest.raises(MmsegError, match=expected.get(damage, "cannot be loaded")) as found:
        open_onnx(file, threads=1)
    assert str(found.value).startswith(f"{file}: ")
    assert "\n" not in str(found.value)


def test_without_onnxruntime_a_line_says_what_to_install(exported, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MmsegError, match=re.escape("onnxruntime: is not installed: pip install 'mmseg-cli[export]'")):
        open_onnx(exported / "net.onnx")


@pytest.mark.parametrize("name", ["onnx", "onnxscript", "onnxruntime"])
def test_onnx_needs_its_extras(trained, mmseg, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    before = trees.snapshot(trained)
    done = mmseg("export", "--run", RUN)
    assert done.code == 2
    assert done.one_error() == f"mmseg: error: {name}: is not installed: pip install 'mmseg-cli[export]'"
    assert trees.snapshot(trained) == before
    export.require_extras(["torch"])


# -------------------------------------------------------------------------------------------------------------- parity


def test_the_command_tells_how_near_the_files_are(exported):
    said = " ".join((exported / "said").read_text().replace("│", " ").split())  # as if not wrapped
    found = re.findall(
        r"(net\.\w+) \([\d.]+ MiB\): ([\d.]+) % equal labels \([\d.]+ % of the worst image\),"
        r" logits differ by at most ([\d.e-]+)",
        said,
    )
    assert [name for name, _, _ in found] == ["net.onnx", "net.pt2"]
    for _, labels, difference in found:
        assert float(labels) >= 99.9
        assert 0 < float(difference) < 1e-3
    assert "3 images of val of cityscapes" in said
    assert "mmseg predict IMAGES --model net.onnx" in said


@pytest.mark.parametrize("form", ["onnx", pytest.param("torch", marks=pytest.mark.slow)])
def test_a_file_of_other_labels_is_not_left_behind(trained, mmseg, monkeypatch, form):
    right = fold.fold_norms

    def wrong(network):
        folded = right(network)
        with torch.no_grad():
            folded.head.classifier.bias[3] += 100
        return folded

    monkeypatch.setattr(fold, "fold_norms", wrong)
    file = Path(f"mmbconv-s0{export.FORMATS[form]}")
    file.write_bytes(b"before")
    before = trees.snapshot(trained)
    done = mmseg("export", "--run", RUN, "--out", file)
    assert done.code == 2
    assert re.search(rf"{file}: only [\d.]+ % of the pixels get the label that torch gives them", done.one_error())
    assert trees.snapshot(trained) == before


def test_real_photographs_get_the_labels_that_torch_gives_them(trained, mmseg, camvid_root):
    """On val of CamVid, through the command: what it prints is what was compared."""
    done = mmseg("export", "--run", RUN, "--images", camvid_root / "val")
    assert done.code == 0, done.err
    said = " ".join(done.out.replace("│", " ").split())
    agreement, worst = map(float, re.search(r"([\d.]+) % equal labels \(([\d.]+) % of the worst", said).groups())
    assert agreement >= 99.9
    assert worst >= 99.9
    assert f"8 images of {camvid_root / 'val'}" in said


def test_parity_is_of_all_pixels_and_finds_what_is_no_number():
    network = torch.nn.Conv2d(3, 2, 1)
    images = [np.random.default_rng(seed).integers(0, 256, (20, 30, 3)).astype(np.uint8) for seed in range(2)]

    def other(change):
        return lambda x_BCHW: change(logits_of(network, x_BCHW))

    def one_pixel(logits_BKHW):
        logits_BKHW[0, :, 0, 0] = logits_BKHW[0, ::-1, 0, 0]
        return logits_BKHW

    def not_a_number(logits_BKHW):
        logits_BKHW[0, 0, 1, 1] = np.nan
        return logits_BKHW

    found = export.parity(
        network,
        {
            "same": other(lambda y: y),
            "near": other(lambda y: y + 0.5),
            "one": other(one_pixel),
            "nan": other(not_a_number),
        },
        images,
    )
    assert found["same"] == export.Parity(0.0, 1.0, 1.0)
    assert found["near"].difference == pytest.approx(0.5, rel=1e-5)
    assert found["near"].agreement == 1
    assert found["one"].agreement == pytest.approx(1 - 3 / (3 * 600))  # two images and the corner of the first
    assert np.isnan(found["nan"].difference)
    for name in ("one", "nan"):
        with pytest.raises(MmsegError, match="was not written"):
            export.require_parity(found[name], where=Path("x.onnx"))
    export.require_parity(export.Parity(0.1, 0.999, 0.99), where=Path("x.onnx"))
    with pytest.raises(MmsegError, match="only 99.8"):
        export.require_parity(export.Parity(0.1, 0.9989, 0.99), where=Path("x.onnx"))


def test_the_pictures_are_a_folder_s_those_of_val_or_generated(trained, tmp_path, monkeypatch):
    record = weights.read_record(RUN)
    val = open_store(Path("data/demo/cityscapes")).split("val")
    found = export.pictures_for(RUN, record, None)
    assert found.real
    assert len(found.images) == len(val)
    assert all(np.array_equal(image, val.image(item)) for item, image in enumerate(found.images))

    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(20):
        Image.new("RGB", (number + 1, 3)).save(folder / f"{number:02d}.png")
    (folder / "notes.txt").write_text("no picture")
    found = export.pictures_for(RUN, record, folder)
    widths = [image.shape[1] for image in found.images]
    assert len(widths) == export.IMAGES
    assert (widths[0], widths[-1]) == (1, 20)
    assert widths == sorted(widths)

    alone = Path(shutil.copytree(RUN, tmp_path / "far" / "a" / "b" / "c" / "d" / "e"))
    monkeypatch.chdir(alone)
    found = export.pictures_for(alone, record, None)
    assert not found.real
    assert "generated" in found.source


@pytest.mark.parametrize("what", ["missing", "empty", "broken"])
def test_a_folder_without_pictures_is_one_line(trained, mmseg, what):
    if what != "missing":
        Path("photos").mkdir()
    if what == "broken":
        Path("photos/a.png").write_bytes(b"no picture")
    done = mmseg("export", "--run", RUN, "--images", "photos")
    assert done.code == 2
    assert "photos" in done.one_error()
    assert not Path("mmbconv-s0.onnx").exists()


def test_a_run_far_from_its_data_is_checked_on_generated_scenes_and_says_so(trained, mmseg, tmp_path, monkeypatch):
    far = Path(shutil.copytree(RUN, tmp_path / "1" / "2" / "3" / "4" / "mine"))
    monkeypatch.chdir(far.parent)
    done = mmseg("export", "--run", far)
    assert done.code == 0, done.err
    assert "checked on generated scenes" in done.err
    text = Path("mine.md").read_text()
    assert "on 4 generated street scenes" in text
    assert "Not evaluated, as far as is known here." in text
    assert "its parameters are not at hand" in text
    assert "| train | not at hand |" in text
    assert card.TERMS["cityscapes"] in text
    assert card.TERMS["imagenet"] in text


# ------------------------------------------------------------------------------------------------------------- command


def test_a_file_that_is_replaced_is_named(trained, mmseg):
    for times in range(2):
        done = mmseg("export", "--run", RUN, "--format", "torch")
        assert done.code == 0, done.err
        assert ("replaced" in done.out) == bool(times)
    assert "mmbconv-s0.pt2, mmbconv-s0.md" in done.out
    assert {path.name for path in Path().glob("mmbconv-s0*")} == {"mmbconv-s0.pt2", "mmbconv-s0.md"}


@pytest.mark.parametrize(
    ("args", "match"),
    [
        (["--out", "net.txt"], "--out: net.txt is not a name for it: let it end with .onnx or .pt2"),
        (
            ["--out", "net.onnx", "--format", "torch"],
            "--out: net.onnx is of another format than --format: end it with .pt2",
        ),
        (["--format", "onx"], "--format: unknown name 'onx': use one of onnx, torch (did you mean onnx?)"),
        (["--out", "folder.onnx"], "folder.onnx: is a folder: give another name with --out"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_name_is_one_line(trained, mmseg, args, match):
    Path("folder.onnx").mkdir()
    before = trees.snapshot(trained)
    done = mmseg("export", "--run", RUN, *args)
    assert done.code == 2
    assert done.one_error() == f"mmseg: error: {match}"
    assert trees.snapshot(trained) == before


def test_a_classifier_and_what_is_no_run_are_refused(trained, mmseg):
    done = mmseg("export", "--run", "runs/demo/pretrain_imagenet/mmbconv-s0")
    assert done.code == 2
    assert "is not a segmentation network" in done.one_error()
    done = mmseg("export", "--run", "runs/demo/train/nothing")
    assert done.code == 2
    assert "there is no such folder" in done.one_error()


# ---------------------------------------------------------------------------------------------------------------- card


def blocks_of(text):
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


@pytest.mark.parametrize(("number", "form"), [(0, "onnx"), (1, "torch")])
def test_the_card_s_own_programs_run_and_give_the_network_s_labels(exported, poisoned, number, form):
    image_HWC = open_store(exported / "data/demo/cityscapes").split("val").image(0)[:37, :50]
    Image.fromarray(image_HWC).save(exported / "street.png")
    network, record = weights.load_network(exported / RUN)
    x_BCHW = inference.normalise(
        torch.from_numpy(image_HWC.copy()).permute(2, 0, 1)[None], device=torch.device("cpu")
    ).numpy()
    labels_HW = logits_of(network, x_BCHW)[0].argmax(0)
    names = record["label_space"]["classes"]
    expected = {names[k]: int((labels_HW == k).sum()) for k in np.unique(labels_HW)}
    done = subprocess.run(
        [sys.executable, "-c", blocks_of((exported / "net.md").read_text())[number]],
        cwd=exported,
        env=poisoned if form == "onnx" else None,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{expected}\n"


def test_the_card_states_figures_with_an_interval_cost_recipe_and_terms(exported):
    text = (exported / "net.md").read_text()
    found = read_json(exported / "reports/demo/evidence/mmbconv-s0/metrics.json", todo="")
    matrices_NKK = (
        evidence.load(exported / "reports/demo/evidence/mmbconv-s0/confusion.npz").counts["confusion"].dense()
    )
    low, high = card.interval(matrices_NKK)
    assert f"mIoU {100 * found['mean_iou']:.2f} % (95 % interval {100 * low:.2f} to {100 * high:.2f} %)" in text
    assert "not the seeds" in text
    for name, number in zip(found["class_iou"], open_store(exported / "data/demo/cityscapes").space.ids, strict=True):
        iou = found["class_iou"][name]
        assert f"| {name} | {number} | {'–' if iou is None else f'{100 * iou:.2f}'} |" in text
    network, _ = weights.load_network(exported / RUN)
    assert f"{sum(p.numel() for p in network.parameters()):,} parameters" in text
    assert "1024x2048" in text
    assert "it was made by these parameters, of `params.yaml`" in text
    assert "| `steps` | 4 | 4 | 4 |" in text
    for terms in ("imagenet", "mapillary", "cityscapes"):
        assert card.TERMS[terms] in text
    assert str(exported) not in text


def test_other_parameters_are_not_passed_off_as_the_run_s(trained, mmseg, change_params):
    change_params(lambda content: content["train"].update(learning_rate=0.5))
    assert mmseg("export", "--run", RUN, "--format", "torch").code == 0
    assert "whether it was made by these very ones is not known" in Path("mmbconv-s0.md").read_text()
    change_params(lambda content: content["network"].update(width=6))
    assert mmseg("export", "--run", RUN, "--format", "torch").code == 0
    assert "its parameters are not at hand" in Path("mmbconv-s0.md").read_text()


@pytest.mark.parametrize("form", [pytest.param("onnx", marks=pytest.mark.slow), "torch"])
def test_a_network_of_another_training_is_not_replaced_unasked(trained, mmseg, form):
    file = Path(f"mmbconv-s0{export.FORMATS[form]}")
    wanted = ["export", "--format", form, "--run"]
    assert mmseg(*wanted, RUN).code == 0
    assert mmseg(*wanted, RUN).code == 0  # its own it may
    other = RUN.parents[1] / "pretrain_mapillary" / RUN.name
    before = trees.contents(trained)
    done = mmseg(*wanted, other)
    assert (done.code, f"{file}: is there, and is not of this training" in done.one_error()) == (2, True)
    assert trees.contents(trained) == before
    for name in (f"mmbconv-s0{export.FORMATS['torch' if form == 'onnx' else 'onnx']}", "mmbconv-s0.md"):
        # nor is one left beside the card of another, nor the card replaced
        kept = {path: path.rename(f"kept{path.suffix}") for path in Path().glob("mmbconv-s0.*") if path.name != name}
        Path(name).touch()
        assert f"{name}: is there, and is not of this training" in mmseg(*wanted, other).one_error()
        Path(name).unlink()
        for path, place in kept.items():
            place.rename(path)
    file.write_text("somebody's")
    assert "is not of this training" in mmseg(*wanted, RUN).one_error()
    assert file.read_text() == "somebody's"
    assert mmseg(*wanted, other, "--out", file).code == 0


def test_figures_of_other_weights_are_left_out(trained):
    own = sha256(RUN / "model.safetensors")
    found = card.measured(RUN, own)
    assert found is not None
    assert found.interval is not None
    assert card.measured(RUN, "0" * 64) is None
    file = Path("reports/demo/evidence/mmbconv-s0/confusion.npz")
    file.write_bytes(file.read_bytes() + b" ")
    assert card.measured(RUN, own) is None
    file.unlink()
    assert card.measured(RUN, own) is None


def matrices(images, seed=0):
    rng = np.random.default_rng(seed)
    return rng.poisson(rng.gamma(2, 50, (images, 1, 1)) * (1 + 8 * np.eye(4)), (images, 4, 4)).astype(np.int64)


def test_the_interval_covers_the_figure_and_narrows_with_more_images():
    widths = []
    for images in (10, 40, 640):
        drawn = matrices(images)
        low, high = card.interval(drawn)
        assert low < metrics.mean_iou(drawn.sum(0)) < high
        widths.append(high - low)
    assert widths[0] > widths[1] > widths[2] > 0
    assert card.interval(drawn) == card.interval(drawn, seed=0) != card.interval(drawn, seed=1)
    assert card.interval(drawn)[0] == pytest.approx(card.interval(drawn, seed=1)[0], abs=0.1 * widths[2])


def test_the_interval_of_equal_images_is_a_point_and_without_pixels_there_is_none():
    one = matrices(1)
    assert card.interval(np.repeat(one, 5, axis=0)) == (metrics.mean_iou(one[0]),) * 2
    assert np.isnan(card.interval(np.zeros((3, 4, 4), dtype=np.int64))).all()


def test_a_bootstrap_interval_is_that_of_the_mean_of_binary_images():
    """One pixel an image and one class: mIoU is a share, whose interval is known (normal approximation)."""
    right = np.arange(400) < 300
    drawn = np.zeros((400, 2, 2), dtype=np.int64)
    drawn[:, 0, 0], drawn[:, 0, 1] = right, ~right  # class 1 is predicted and never true: its IoU is 0
    low, high = card.interval(drawn)
    spread = 1.96 * (0.75 * 0.25 / 400) ** 0.5
    assert 2 * low == pytest.approx(0.75 - spread, abs=0.01)
    assert 2 * high == pytest.approx(0.75 + spread, abs=0.01)


def test_the_terms_are_those_of_the_data_of_every_rung(trained):
    stores = {name: open_store(Path("data/demo") / name) for name in ("imagenet", "mapillary", "cityscapes")}
    space = stores["cityscapes"].space
    rungs = card.rungs(RUN, weights.read_record(RUN))
    assert [stage for stage, _ in rungs] == ["pretrain_imagenet", "pretrain_mapillary", "train"]
    assert [store.folder.name for _, store in rungs] == list(stores)
    assert card.terms(rungs, space) == [card.TERMS[name] for name in stores]
    generated = stores["mapillary"]
    generated.manifest["parameters"]["source"] = "synthetic"
    assert generated.title == "generated mapillary"
    assert card.terms([("train", generated), ("train", None)], space) == [
        f"mapillary, {card.GENERATED}",
        card.TERMS["cityscapes"],
    ]
