"""A block of the user's own: what it gets, that it takes part in everything, and a line for each mistake in it."""

from __future__ import annotations

import copy
import importlib
import json
import subprocess
import sys

import pytest
import torch
from torch import nn

from mmseg_cli.errors import MmsegError
from mmseg_cli.models import cost
from mmseg_cli.models.blocks import build_block
from mmseg_cli.models.fold import fold_norms
from mmseg_cli.models.own import own_class, own_code
from mmseg_cli.models.unet import blocks_of, build_network, initialise, recompute_blocks, set_stochastic_depth

SETTINGS = {"expansion": 2.0, "se_ratio": 0.25, "norm": "batch", "activation": "silu"}
NETWORK = {"num_classes": 5, "layout": "uniform", "width": 8, "depth": 2, "levels": 2, "stem_stride": 2, **SETTINGS}
PATH = "blocks.mine:Mine"

MINE = """
from torch import nn

class Mine(nn.Module):
    def __init__(self, in_channels, out_channels, *, norm):
        super().__init__()
        self.got = {"norm": norm}
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=2, dilation=2, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)
        self.drop_path = nn.Identity()

    def forward(self, x):
        return x + self.drop_path(self.norm(self.conv(x)).relu())
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes modules below the current folder, a project's; none was imported before, none stays imported after."""
    root = tmp_path / "project"
    root.mkdir(exist_ok=True)
    monkeypatch.chdir(root)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # files here change faster than Python can see

    def forget():
        for name in [name for name in sys.modules if name.partition(".")[0] == "blocks"]:
            del sys.modules[name]
        importlib.invalidate_caches()

    def into(**modules: str) -> None:
        for name, text in modules.items():
            file = root / "blocks" / f"{name}.py"
            file.parent.mkdir(exist_ok=True)
            file.write_text(text)
        forget()

    yield into
    forget()


@pytest.fixture
def mine(write):
    write(mine=MINE)


def build(path: str = PATH, *, channels: tuple[int, int] = (8, 8)) -> nn.Module:
    return build_block(path, *channels, **SETTINGS)


def refused(path: str = PATH, *, channels: tuple[int, int] = (8, 8)) -> str:
    """The one line of a class that cannot be used."""
    with pytest.raises(MmsegError) as caught:
        build(path, channels=channels)
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith(f"{path}: ")
    assert caught.value.exit_code == 2
    return line


# ------------------------------------------------------------------------------------------------------- the good path


@pytest.mark.parametrize(
    ("signature", "got"),
    [
        ("self, in_channels, out_channels", {}),
        ("self, in_channels, out_channels, norm, *, se_ratio=0.5", {"norm": "batch", "se_ratio": 0.25}),
        ("self, from_channels, to_channels, kernel=3, *, activation", {"activation": "silu"}),
        ("self, *channels, expansion", {"expansion": 2.0}),
        ("self, *channels, **settings", SETTINGS),
    ],
)
def test_a_constructor_gets_the_settings_that_it_names(write, signature, got):
    code = f"""
        from torch import nn
        class Mine(nn.Identity):
            def __init__({signature}):
                said = {{**locals(), **locals().get("settings", {{}})}}
                super().__init__()
                self.got = {{key: said[key] for key in {list(SETTINGS)} if key in said}}
    """
    write(mine="\n".join(line[8:] for line in code.splitlines()))
    assert build().got == got


def test_a_class_of_an_installed_package_is_found_too():
    torch.manual_seed(0)
    ours = build("residual")
    torch.manual_seed(0)
    theirs = build("mmseg_cli.models.blocks:Residual")
    assert type(theirs) is type(ours)
    assert all(torch.equal(one, other) for one, other in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_trying_a_block_leaves_no_trace_in_it(mine):
    block = build()
    assert all(module.training for module in block.modules())
    assert block.norm.num_batches_tracked == 0
    assert not block.norm.running_mean.any()
    assert all(parameter.grad is None and parameter.requires_grad for parameter in block.parameters())


@pytest.mark.parametrize(
    ("task", "shape", "in_training"),
    [("segmentation", (2, 5, 37, 52), (2, 5, 19, 26)), ("classification", (2, 5), (2, 5))],
)
def test_a_network_is_built_of_it(mine, task, shape, in_training):
    made = []
    for _ in range(2):
        torch.manual_seed(0)
        made.append(build_network(task=task, block=PATH, **NETWORK))
    assert {type(block).__name__ for block in blocks_of(made[0])} == {"Mine"}
    assert len(blocks_of(made[0])) == 2 * 3
    assert all(torch.equal(one, other) for one, other in zip(*(net.parameters() for net in made), strict=True))
    assert made[0](torch.rand(2, 3, 37, 52)).shape == in_training
    assert made[0].eval()(torch.rand(2, 3, 37, 52)).shape == shape


def test_a_network_draws_its_convolutions_and_norms_as_ours(write):
    """Whatever its constructor did to them; a parameter of another kind keeps what it was given."""
    code = MINE.replace(
        "        self.drop_path",
        "        nn.init.zeros_(self.conv.weight), nn.init.zeros_(self.norm.weight)\n"
        "        self.gain = nn.Parameter(__import__('torch').full((1,), 0.25))\n"
        "        self.drop_path",
    )
    write(mine=code)
    network = build_network(task="segmentation", block=PATH, **NETWORK)
    block = blocks_of(network)[0]
    assert float(block.conv.weight.detach().std()) == pytest.approx((2 / (9 * 8)) ** 0.5, rel=0.2)
    assert (block.norm.weight == 1).all()
    assert block.gain == 0.25
    before = block.conv.weight.clone()
    initialise(network)
    assert not torch.equal(block.conv.weight, before)


def test_stochastic_depth_needs_a_drop_path(write):
    write(mine=MINE, other=MINE.replace("self.drop_path = nn.Identity()", "pass").replace("self.drop_path", ""))
    network = build_network(task="segmentation", block=PATH, **NETWORK)
    set_stochastic_depth(network, 0.2)
    assert [type(block.drop_path).__name__ for block in blocks_of(network)] == ["Identity"] + 5 * ["StochasticDepth"]
    assert blocks_of(network)[-1].drop_path.p == 0.2
    without = build_network(task="segmentation", block="blocks.other:Mine", **NETWORK)
    set_stochastic_depth(without, 0)
    with pytest.raises(MmsegError, match="^stochastic_depth: the block Mine has no drop_path: give it") as caught:
        set_stochastic_depth(without, 0.2)
    assert "\n" not in str(caught.value)


def test_recomputing_it_changes_no_bit(mine):
    torch.manual_seed(0)
    networks = [build_network(task="segmentation", block=PATH, **NETWORK)]
    set_stochastic_depth(networks[0], 0.5)
    networks.append(copy.deepcopy(networks[0]))
    recompute_blocks(networks[1])
    images_BCHW = torch.randn(4, 3, 32, 48)
    for network in networks:
        torch.manual_seed(1)
        network(images_BCHW).square().mean().backward()
    for one, other in zip(*(network.parameters() for network in networks), strict=True):
        assert torch.equal(one.grad, other.grad)
    for one, other in zip(*(network.buffers() for network in networks), strict=True):
        assert torch.equal(one, other)


def test_its_cost_is_counted(mine):
    found = cost.block_cost(PATH, width=8, height=6, width_px=10, **SETTINGS)
    assert (found.parameters, found.macs) == (9 * 8 * 8 + 2 * 8, 60 * 9 * 8 * 8)
    assert found.activation_bytes > 0
    with torch.device("meta"):
        network = build_network(task="segmentation", block=PATH, **NETWORK)
    assert cost.macs(network, (1, 3, 1024, 2048)) > 10**9


def test_its_own_norms_are_not_folded_and_the_others_are(mine):
    torch.manual_seed(0)
    network = build_network(task="segmentation", block=PATH, **NETWORK)
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.running_mean)
            nn.init.uniform_(norm.running_var, 0.5, 2)
    folded = fold_norms(network)
    left = [module for module in folded.modules() if isinstance(module, nn.BatchNorm2d)]
    assert left == [block.norm for block in blocks_of(folded)]
    images_BCHW = torch.randn(1, 3, 33, 40)
    with torch.no_grad():
        torch.testing.assert_close(folded(images_BCHW), network.eval()(images_BCHW), rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------------------- what is wrong

IMPORT = "cannot be imported (ModuleNotFoundError: No module named"
MEND = "mend that file, or write it as package.module:Class, such as blocks.mine:Mine"
SAYS = "mend it: Class(in_channels, out_channels, *, ...), which maps BCHW to BCHW"


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (
            "blocks.none:Mine",
            f"blocks.none {IMPORT} 'blocks.none'): {MEND}",
        ),
        (
            "nowhere.at.all:Mine",
            f"nowhere.at.all {IMPORT} 'nowhere'): {MEND}",
        ),
        ("blocks.mine:Yours", "blocks.mine has no Yours: write it as package.module:Class, such as blocks.mine:Mine"),
        ("blocks.mine:nn", "is no torch.nn.Module: derive it from nn.Module"),
        ("blocks.mine:a_function", "is no torch.nn.Module: derive it from nn.Module"),
        ("blocks.mine:Plain", "is no torch.nn.Module: derive it from nn.Module"),
        ("blocks.mine:ready_made", "is no torch.nn.Module: derive it from nn.Module"),
    ],
)
def test_what_is_not_there_or_no_module_is_one_line(write, path, line):
    write(mine=f"{MINE}\ndef a_function(): ...\nclass Plain: ...\nready_made = Mine(4, 4, norm='batch')\n")
    assert refused(path) == f"{path}: {line}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("class Mine(\n", "SyntaxError: '(' was never closed"),
        ("import nowhere_to_be_found", "ModuleNotFoundError: No module named 'nowhere_to_be_found'"),
        ("raise ValueError('one\\ntwo')", "ValueError: one two"),
        ("from blocks.helper import rate", "ImportError: cannot import name 'rate' from 'blocks.helper'"),
        ("\0", "SyntaxError: source code string cannot contain null bytes"),
    ],
)
def test_a_file_that_cannot_be_imported_is_one_line(write, text, said):
    write(mine=text, helper="")
    line = refused()
    assert line.startswith(f"{PATH}: blocks.mine cannot be imported ({said}")
    assert line.endswith(f"): {MEND}")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("super().__init__()", "raise RuntimeError('not\\nyet')"), "RuntimeError: not yet"),
        (("*, norm", "*, norm, rate"), "TypeError: Mine.__init__() missing 1 required keyword-only argument: 'rate'"),
        (("in_channels, out_channels, *, norm", "channels, *, norm"), "TypeError: Mine.__init__() takes 2 positional"),
        (("super().__init__()", "pass"), "AttributeError: cannot assign module before Module.__init__() call"),
        (
            ("def forward", "def backward"),
            'NotImplementedError: Module [Mine] is missing the required "forward"',
        ),
        (("padding=2", "padding=1"), "RuntimeError: The size of tensor a (8) must match the size of tensor b (6)"),
    ],
)
def test_a_block_that_cannot_be_made_or_run_is_one_line(write, change, said):
    assert change[0] in MINE
    write(mine=MINE.replace(*change))
    line = refused()
    assert line.startswith(f"{PATH}: cannot be made, or run, from 8 to 8 channels ({said}")
    assert line.endswith(f"): {SAYS}")


@pytest.mark.parametrize(
    ("returned", "shape"),
    [
        ("nn.functional.avg_pool2d(x, 2)", "(2, 8, 4, 4)"),
        ("x[:, :4]", "(2, 4, 8, 8)"),
        ("x.mean((2, 3))", "(2, 8)"),
        ("x[:1]", "(1, 8, 8, 8)"),
        ("(x, x)", "()"),
        ("None", "()"),
    ],
)
def test_another_size_is_one_line(write, returned, shape):
    write(mine=MINE.replace("return x + self.drop_path(self.norm(self.conv(x)).relu())", f"return {returned}"))
    assert refused() == f"{PATH}: maps (2, 8, 8, 8) to {shape}: a block keeps the size: give (2, 8, 8, 8)"


def test_a_command_ends_with_that_line(project, change_params, mmseg, write):
    """Found from the project's folder, where the command runs."""
    write(mine="class Mine(")
    change_params(lambda p: p["variants"].update(mine={"class": PATH}))
    change_params(lambda p: p["ablate"].update(variants=["mine"]))
    done = mmseg("cost")
    assert done.code == 2
    assert done.one_error().startswith(f"mmseg: error: {PATH}: blocks.mine cannot be imported (SyntaxError: ")


# ------------------------------------------------------------------------------------------------- what its code is


HELPED = MINE.replace("from torch import nn", "from torch import nn\nfrom blocks.helper import RATE")


def digests() -> dict[str, str]:
    """`own_code` in a process of its own, as a command computes it; like a console script it does not look here."""
    code = f"import json; from mmseg_cli.models.own import own_code; print(json.dumps(own_code({PATH!r})))"
    done = subprocess.run([sys.executable, "-I", "-B", "-c", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_its_code_is_its_file_and_what_it_imports_of_its_package(write):
    write(mine=HELPED, helper="RATE = 2\n", other=MINE)
    first = digests()
    assert sorted(first) == ["blocks.helper", "blocks.mine"]
    write(other=MINE + "# changed\n", unused="")
    assert digests() == first
    write(helper="RATE = 3\n")
    changed = digests()
    assert {name for name in first if first[name] != changed[name]} == {"blocks.helper"}
    write(mine=HELPED + "\n")
    again = digests()
    assert {name for name in changed if changed[name] != again[name]} == {"blocks.mine"}


def test_relative_imports_and_the_package_itself_are_its_code(write):
    write(__init__="SIDE = 3\n", helper="from . import deeper\n", deeper="", aside="")
    write(mine=MINE.replace("from torch import nn", "from torch import nn\nfrom . import helper"))
    assert sorted(digests()) == ["blocks", "blocks.deeper", "blocks.helper", "blocks.mine"]


def test_another_own_block_in_the_same_process_is_not_its_code(write):
    write(mine=MINE, other=MINE)
    first = own_code(PATH)
    own_class("blocks.other:Mine")
    assert own_code(PATH) == first


def test_what_it_imports_later_is_its_code_too(write):
    late = MINE.replace("super().__init__()", "super().__init__(); from blocks.helper import RATE")
    write(mine=late, helper="RATE = 2\n")
    assert sorted(own_code(PATH)) == ["blocks.helper", "blocks.mine"]
