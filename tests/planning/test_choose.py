"""What is chosen for a machine, from needs that are made up."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmseg_cli import memory, params
from mmseg_cli.errors import MmsegError
from mmseg_cli.planning.choose import Case, Need, Setting, choose, cure, most_devices, row, separately
from mmseg_cli.planning.machine import Machine, parse_bytes, parse_gpus

REPOSITORY = Path(__file__).parents[2]
LOADED = params.load(REPOSITORY / "params.yaml")


def make(stage="train", *, variant="mbconv", batch=8, norm_batch=8, norm="batch", steps=100) -> Case:
    section = LOADED.train.model_copy(update={"batch": batch, "norm_batch": norm_batch, "steps": steps})
    return Case(stage, variant, section, "segmentation", 19, LOADED.network_of(variant) | {"norm": norm})


def ask(case: Case, recompute: bool, micro: int) -> Need:
    """A sample takes 10 bytes, or 4 with recomputation, on top of 8; and a second."""
    return Need(8 + micro * (4 if recompute else 10), micro * (4 / 3 if recompute else 1), None, "measured")


def on(devices: int, memory: float) -> Machine:
    return Machine(devices, memory, "made up")


def test_no_recomputation_where_it_fits():
    [found] = choose([make()], machine=on(1, 88), ask=ask)
    assert (found.setting, found.micro, found.parts, found.fits) == (Setting(1, False, None), 8, 1, True)
    assert found.step_seconds == 8
    assert found.images == 800
    assert found.hours == pytest.approx(800 / 3600)


def test_recomputation_where_it_is_needed():
    [found] = choose([make()], machine=on(1, 87), ask=ask)
    assert (found.setting, found.fits) == (Setting(1, True, None), True)


def test_a_norm_batch_that_cannot_be_kept_is_not_changed():
    [found] = choose([make()], machine=on(1, 39), ask=ask)
    assert not found.fits
    assert (found.micro, found.setting) == (8, Setting(1, True, None))
    assert cure([make()], memory=39, ask=ask) == Setting(2, True, None)
    assert cure([make()], memory=18, ask=ask) == Setting(4, True, None)
    assert cure([make(norm_batch=1)], memory=18, ask=ask) == Setting(1, False, None)
    assert cure([make()], memory=11, ask=ask) is None


def test_accumulation_follows_from_batch_and_norm_batch():
    [found] = choose([make(batch=32, norm_batch=8)], machine=on(2, 1000), ask=ask)
    assert (found.setting.devices, found.micro, found.parts) == (2, 4, 4)
    assert found.step_seconds == 16


def test_group_norm_gets_fewer_samples_at_once_before_recomputation():
    [found] = choose([make(norm="group")], machine=on(1, 50), ask=ask)
    assert (found.setting, found.micro, found.parts, found.fits) == (Setting(1, False, 4), 4, 2, True)
    [found] = choose([make(norm="group")], machine=on(1, 13), ask=ask)
    assert (found.setting, found.parts) == (Setting(1, True, 1), 8)
    [found] = choose([make(norm="group")], machine=on(1, 11), ask=ask)
    assert not found.fits


def test_one_batch_norm_in_the_grid_binds_micro_batch():
    rows = choose([make(norm="group"), make(variant="mmbconv")], machine=on(1, 50), ask=ask)
    assert {found.setting for found in rows} == {Setting(1, True, None)}


@pytest.mark.parametrize(("norm_batch", "there", "most"), [(8, 8, 8), (8, 6, 4), (12, 8, 6), (7, 6, 1), (1, 8, 1)])
def test_devices_divide_norm_batch(norm_batch, there, most):
    assert most_devices(norm_batch, there) == most


def test_one_setting_for_all_stages_and_the_better_ones_apart():
    cases = [make("pretrain_mapillary", batch=16, norm_batch=16), make("train", batch=12, norm_batch=12)]
    assert {found.setting for found in choose(cases, machine=on(8, 48), ask=ask)} == {Setting(4, False, None)}
    apart = separately(cases, machine=on(8, 48), ask=ask)
    assert [found.setting.devices for found in apart] == [8, 6]
    # Where four devices do not suffice for both, each stage takes what it needs.
    both = choose(cases, machine=on(8, 20), ask=ask)
    assert [(found.setting.devices, found.fits) for found in both] == [(8, True), (6, True)]


def test_energy_is_that_of_all_devices():
    def told(case: Case, recompute: bool, micro: int) -> Need:
        return Need(1, 9, 500.0, "measured")

    found = row(make(steps=400), Setting(2, False, None), machine=on(2, 10), ask=told)
    assert found.hours == 1
    assert found.kilowatt_hours == 1


def test_amounts_of_memory():
    assert parse_bytes("24GB", option="--memory") == 24 * 10**9
    assert parse_bytes(" 1.5 gib", option="--memory") == 3 * 2**29
    machine = parse_gpus("8x80GB")
    assert (machine.devices, machine.memory) == (8, 0.9 * 80e9)
    assert parse_gpus("4X24GiB").memory == 0.9 * 24 * 2**30


@pytest.mark.parametrize("text", ["", "24", "GB", "-1GB", "0GB", "1e3GB", "24 XB", "24GBs", "nanGB"])
def test_what_is_no_memory(text):
    with pytest.raises(MmsegError):
        parse_bytes(text, option="--memory")


@pytest.mark.parametrize("text", ["", "8", "8x", "x80GB", "0x80GB", "8x80", "8x0GB", "-8x80GB", "1.5x80GB"])
def test_what_are_no_gpus(text):
    with pytest.raises(MmsegError):
        parse_gpus(text)


def test_a_container_s_limit_counts(tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable: 8000 kB\n")
    assert memory.look(proc=tmp_path, cgroups=tmp_path / "none").available == 8000 * 1024
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "cgroup").write_text("0::/inner/one\n")
    group = tmp_path / "groups" / "inner"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("5000000\n")
    (group / "memory.current").write_text("3000000\n")
    assert memory.look(proc=tmp_path, cgroups=tmp_path / "groups").available == 2_000_000
    (group / "memory.stat").write_text("anon 1\ninactive_file 500000\n")
    assert memory.look(proc=tmp_path, cgroups=tmp_path / "groups").available == 2_500_000
    (group / "memory.max").write_text("max\n")
    assert memory.look(proc=tmp_path, cgroups=tmp_path / "groups").available == 8000 * 1024
