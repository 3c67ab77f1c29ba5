from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from mmseg_cli.errors import MmsegError
from mmseg_cli.evaluation import branches, inference
from mmseg_cli.evaluation.on_torch import segmenter
from mmseg_cli.evaluation.segmenter import Protocol
from mmseg_cli.models import cost, weights
from mmseg_cli.models.auxiliary import DeepSupervision
from mmseg_cli.models.fold import fold_norms
from mmseg_cli.models.resizing import resize
from mmseg_cli.models.unet import build_network

CLASSES, LEVELS = 5, 4
ALL = range(LEVELS)
CPU = torch.device("cpu")


def make(**changes):
    """A network in evaluation mode, none of whose norms or classifiers is that of a new network."""
    torch.manual_seed(0)
    settings = {
        "task": "segmentation",
        "num_classes": CLASSES,
        "block": "mmbconv",
        "layout": "pyramid",
        "width": 4,
        "depth": 1,
        "levels": LEVELS,
        "stem_stride": 2,
        "expansion": 2,
        "se_ratio": 0.25,
        "norm": "batch",
        "activation": "silu",
    } | changes
    network = build_network(**settings).eval()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.running_var):
                    tensor.uniform_(0.5, 2)
                for tensor in (module.bias, module.running_mean):
                    tensor.normal_()
        network.head.classifier.weight.normal_()
        network.head.classifier.bias.normal_()
    return network


def images(*sizes, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(1, 3, *size, generator=generator) for size in sizes]


def features_of(network, x_BCHW):
    """Every encoder level's feature, by hand."""
    x_BCHW, found = network.body.stem(x_BCHW), []
    for encode in network.body.encoder.values():
        x_BCHW = encode(x_BCHW)
        found.append(x_BCHW)
    return found


def by_hand(network, x_BCHW, level, mean_C):
    """The logits where the decoder gets the mean of a level in place of its feature."""
    features = features_of(network, x_BCHW)
    features[level] = mean_C.view(1, -1, 1, 1).expand_as(features[level])
    joined = features[-1]
    for finer in reversed(range(len(features) - 1)):
        joined = network.body.decoder[f"level{finer}"](joined, features[finer])
    return resize(network.head.classifier(joined), x_BCHW.shape[-2:])


def some_means(network, seed=2):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(channels, generator=generator) for channels in network.body.channels]


# ---------------------------------------------------------------------------------------------------------- knocked out


@pytest.mark.parametrize("size", [(32, 48), (33, 21), (1, 1)])
@pytest.mark.parametrize("changes", [{}, {"block": "residual", "layout": "uniform", "norm": "group"}, {"levels": 2}])
@torch.no_grad()
def test_a_network_without_a_level_is_the_one_written_by_hand(changes, size):
    network, (x_BCHW,) = make(**changes), images(size)
    whole, outputs = network(x_BCHW), []
    for level, mean_C in enumerate(some_means(network)):
        part = branches.without(network, level, mean_C=mean_C)
        outputs.append(part(x_BCHW.clone()))
        torch.testing.assert_close(outputs[-1], by_hand(network, x_BCHW, level, mean_C))
        assert not torch.allclose(outputs[-1], whole)
    assert not torch.allclose(outputs[0], outputs[-1])


@pytest.mark.parametrize("level", ALL)
@torch.no_grad()
def test_the_network_itself_stays_as_it_is_and_lends_its_weights(level):
    network, (x_BCHW,) = make(), images((32, 48))
    before, logits = copy.deepcopy(network.state_dict()), network(x_BCHW)
    modules = [*network.named_modules()]
    with branches.means_of(network) as means:
        network(x_BCHW)
    part = branches.without(network, level, mean_C=means.of_levels()[level])
    assert not torch.equal(part(x_BCHW), logits)
    torch.testing.assert_close(network(x_BCHW), logits, rtol=0, atol=0)
    after = network.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert [*network.named_modules()] == modules
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    assert {id(tensor) for tensor in network.parameters()} == {id(tensor) for tensor in part.parameters()}
    own = {id(tensor) for tensor in network.buffers()}
    assert [name for name, tensor in part.named_buffers() if id(tensor) not in own] == [
        f"body.decoder.level{min(level, LEVELS - 2)}.mean_1C11"
    ]


@pytest.mark.parametrize("level", ALL)
@torch.no_grad()
def test_a_level_that_the_decoder_does_not_read_is_not_missed(level):
    network, (x_BCHW,) = make(), images((32, 48))
    joined = network.body.decoder[f"level{min(level, LEVELS - 2)}"].fuse.conv.weight
    skip_channels = network.body.channels[min(level, LEVELS - 2)]
    of_level = slice(skip_channels, None) if level == LEVELS - 1 else slice(0, skip_channels)
    joined[:, of_level] = 0
    logits, means = network(x_BCHW), some_means(network)
    torch.testing.assert_close(branches.without(network, level, mean_C=means[level])(x_BCHW), logits)
    others = [branches.without(network, other, mean_C=means[other])(x_BCHW) for other in ALL if other != level]
    assert not any(torch.allclose(other, logits) for other in others)


@pytest.mark.parametrize("level", ALL)
@torch.no_grad()
def test_the_mean_takes_away_what_a_level_says_and_not_its_bias(level):
    """What is joined keeps its mean; a feature that is its mean everywhere is not missed, as it would be for zero."""
    network, (x_BCHW, dot_BCHW) = make(), images((64, 64), (1, 1))

    def joined_mean(part):
        decoder = part.body.decoder[f"level{min(level, LEVELS - 2)}"]
        norm, seen = getattr(decoder, "level", decoder).fuse.norm, []
        hook = norm.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].mean((0, 2, 3))))
        part(x_BCHW)
        hook.remove()
        return seen[0]

    if level < LEVELS - 1:  # the mean of what is upsampled is another one
        mean_C = features_of(network, x_BCHW)[level].mean((0, 2, 3))
        part = branches.without(network, level, mean_C=mean_C)
        torch.testing.assert_close(joined_mean(part), joined_mean(network))
        zero = branches.without(network, level, mean_C=torch.zeros_like(mean_C))
        assert not torch.allclose(joined_mean(zero), joined_mean(network))
    mean_C = features_of(network, dot_BCHW)[level].mean((0, 2, 3))
    logits = network(dot_BCHW)
    torch.testing.assert_close(branches.without(network, level, mean_C=mean_C)(dot_BCHW), logits)
    assert not torch.allclose(branches.without(network, level, mean_C=0 * mean_C)(dot_BCHW), logits)


@torch.no_grad()
def test_the_means_are_over_all_pixels_of_all_images():
    network, seen = make(), images((32, 48), (16, 16), (9, 5))
    with branches.means_of(network) as means:
        for x_BCHW in seen:
            network(x_BCHW)
        network(torch.cat([seen[0], seen[0]]))  # twice more
    features = [features_of(network, x_BCHW) for x_BCHW in [*seen, seen[0], seen[0]]]
    for level, mean_C in enumerate(means.of_levels()):
        pixels_CN = torch.cat([feature[level][0].flatten(1) for feature in features], dim=1)
        torch.testing.assert_close(mean_C, pixels_CN.double().mean(1).float())


def test_no_images_have_no_means():
    with branches.means_of(make()) as means:
        pass
    with pytest.raises(ValueError, match="no images"):
        means.of_levels()


def test_hooks_go_even_if_the_network_fails():
    network = make()
    with pytest.raises(RuntimeError), branches.means_of(network):
        network(torch.zeros(1, 7, 8, 8))
    assert not any(module._forward_hooks for module in network.modules())


@torch.no_grad()
def test_folded_and_compiled_networks_are_knocked_out_alike():
    network, (x_BCHW,) = make(), images((32, 48))
    folded = fold_norms(network)
    for level, mean_C in enumerate(some_means(network)):
        part = branches.without(network, level, mean_C=mean_C)
        logits = part(x_BCHW)
        of_folded = branches.without(folded, level, mean_C=mean_C)(x_BCHW)
        torch.testing.assert_close(of_folded, logits, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(torch.compile(part, backend="eager")(x_BCHW), logits)


# ---------------------------------------------------------------------------------------------------- a head per branch


def supervise(network):
    supervised = DeepSupervision(network)
    with torch.no_grad():
        for parameter in supervised.auxiliary.parameters():
            parameter.normal_()
    return supervised


@pytest.mark.parametrize("size", [(32, 48), (33, 21)])
@torch.no_grad()
def test_a_head_gives_what_it_gave_in_training(tmp_path, size):
    network, (x_BCHW,) = make(), images(size)
    supervised = supervise(network)
    weights.save_tensors(supervised.auxiliary.state_dict(), tmp_path / weights.AUXILIARY)
    supervised.train()
    network.eval()  # its statistics are not those of this batch
    own, *auxiliary = supervised(x_BCHW)
    heads = branches.heads_of(tmp_path, network)
    assert list(heads) == [1, 2]
    for (level, head), expected in zip(heads.items(), auxiliary, strict=True):
        part = branches.up_to(network, level, head=head)
        torch.testing.assert_close(part(x_BCHW), resize(expected, size), rtol=0, atol=0)
        assert not torch.allclose(resize(expected, size), resize(own, size))
        assert part.body.channels == network.body.channels[level:]
        assert {id(tensor) for tensor in part.body.parameters()} < {id(tensor) for tensor in network.body.parameters()}
    torch.testing.assert_close(network(x_BCHW), resize(own, size), rtol=0, atol=0)


def test_heads_of_another_network_or_damaged_ones_are_refused(tmp_path):
    network, file = make(), tmp_path / weights.AUXILIARY
    assert branches.heads_of(tmp_path, network) == {}
    weights.save_tensors(supervise(make(levels=3)).auxiliary.state_dict(), file)
    with pytest.raises(MmsegError, match="is of another architecture"):
        branches.heads_of(tmp_path, network)
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(MmsegError, match="is damaged"):
        branches.heads_of(tmp_path, network)


@pytest.mark.parametrize(
    ("levels", "coefficient", "heads", "expected"),
    [
        (1, 0, [], [{"knocked_out": branches.ONLY, "head": branches.NETWORKS_OWN}]),
        (2, 0, [], [{"head": branches.NETWORKS_OWN}, {"head": branches.BOTTOM}]),
        (
            3,
            0,
            [],
            [{"head": branches.NETWORKS_OWN}, {"head": "trained without deep supervision"}, {"head": branches.BOTTOM}],
        ),
        (
            3,
            0.4,
            [],
            [
                {"head": branches.NETWORKS_OWN},
                {"head": "the run has no auxiliary.safetensors"},
                {"head": branches.BOTTOM},
            ],
        ),
        (4, 0.4, [1, 2], [{"head": branches.NETWORKS_OWN}, {}, {}, {"head": branches.BOTTOM}]),
    ],
)
def test_what_is_missing_has_a_reason(levels, coefficient, heads, expected):
    record = {"network": {"levels": levels}, "rungs": [{"parameters": {"deep_supervision": coefficient}}]}
    assert branches.missing(record, dict.fromkeys(heads)) == expected


# --------------------------------------------------------------------------------------------------------- both at work


@pytest.mark.parametrize("changes", [{}, {"block": "residual", "layout": "uniform"}, {"stem_stride": 4, "levels": 3}])
def test_no_part_takes_more_memory_than_the_network(changes):
    network = make(**changes)
    supervised, size = supervise(network), (1, 3, 64, 64)
    whole = cost.inference_bytes(network, size)
    for level, mean_C in enumerate(some_means(network)):
        assert cost.inference_bytes(branches.without(network, level, mean_C=mean_C), size) <= whole
    for level, head in enumerate(supervised.auxiliary.values(), start=1):
        assert cost.inference_bytes(branches.up_to(network, level, head=head), size) <= whole


def all_of(network, heads, pictures, *, limit=None, protocol=None):
    made = {"classes": CLASSES, "device": CPU, "channels_last": False}
    plain = segmenter(network, protocol=protocol or Protocol(), limit=limit, **made)
    seen = []

    def go_through(each):
        seen.append(each)
        for image_HWC in pictures:
            each.predict(image_HWC)

    def make_one(part, **options):
        return segmenter(part, **made, **options)

    found = branches.segmenters(network, heads, plain=plain, make=make_one, compile=False, go_through=go_through)
    assert len(seen) == 1
    return plain, found


def test_every_level_and_head_predicts_as_the_network_does():
    network = make()
    heads = {1: supervise(network).auxiliary["level1"]}
    pictures = [np.random.default_rng(seed).integers(0, 255, (24, 32, 3), np.uint8) for seed in range(2)]
    plain, found = all_of(network, heads, pictures)
    assert list(found) == ["knocked_out_0", "knocked_out_1", "knocked_out_2", "knocked_out_3", "head_1"]
    seen = [torch.from_numpy(picture).permute(2, 0, 1)[None] for picture in pictures]
    seen = [inference.normalise(x_BCHW, device=CPU) for x_BCHW in seen]
    with torch.no_grad():
        features = [torch.cat(level) for level in zip(*(features_of(network, x) for x in seen), strict=True)]
        for level, feature_BCHW in enumerate(features):
            logits = by_hand(network, seen[0], level, feature_BCHW.mean((0, 2, 3)))
            predicted_HW = found[f"knocked_out_{level}"].predict(pictures[0]).classes_HW
            assert (predicted_HW == logits[0].argmax(0).numpy()).mean() > 0.99
            assert (predicted_HW != plain.predict(pictures[0]).classes_HW).any()
        logits = resize(heads[1]([network.body(seen[0])[1]]), (24, 32))
    np.testing.assert_array_equal(found["head_1"].predict(pictures[0]).classes_HW, logits[0].argmax(0).numpy())


def test_a_limit_asks_for_the_same_windows_everywhere():
    network = make()
    heads = {1: supervise(network).auxiliary["level1"]}
    pictures = [np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8)]
    some = segmenter(network, classes=CLASSES, device=CPU, limit=1)
    limit = next(limit for limit in range(2**17, 2**24, 2**15) if fits(replace(some, limit=limit)))
    plain, found = all_of(network, heads, pictures, limit=limit)
    plan = plain.plan((64, 96), (64, 96))
    assert plan.forced
    assert all(each.plan((64, 96), (64, 96)) == plan for each in found.values())


def fits(some):
    try:
        some.plan((64, 96), (64, 96))
    except MmsegError:
        return False
    return True


def test_a_network_of_one_level_has_nothing_to_knock_out():
    _, found = all_of(make(levels=1), {}, [np.zeros((8, 8, 3), np.uint8)])
    assert found == {}
