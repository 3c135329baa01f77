from __future__ import annotations

import pytest
import torch

from limner.export.checkpoint import BadCheckpoint
from limner.export.parameters import load_parameters
from tests.export.conftest import Tiny, tiny

PREFIXES = ("model.", "")


def changed(changes, prefix=""):
    """The state dict with some of it replaced; None drops a name."""
    tensors = {f"{prefix}{name}": tensor for name, tensor in tiny(1).state_dict().items()} | changes
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


@pytest.mark.parametrize("prefix", PREFIXES)
def test_every_parameter_and_buffer_is_taken_over_with_and_without_a_prefix(prefix):
    network = tiny(0)
    load_parameters(network, changed({}, prefix), PREFIXES)
    for name, tensor in tiny(1).state_dict().items():
        assert torch.equal(network.state_dict()[name], tensor), name


def test_what_is_missing_in_excess_and_misshapen_is_named_and_nothing_loaded():
    network = tiny(0)
    tensors = changed(
        {
            "model.last.bias": None,
            "model.tail.weight": torch.zeros(2, 3),
            "model.first.weight": torch.zeros(8, 3, 5, 5),
        },
        "model.",
    )
    with pytest.raises(BadCheckpoint) as raised:
        load_parameters(network, tensors, PREFIXES)
    assert str(raised.value) == (
        "of 9 parameters 1 missing: last.bias (3); 1 in excess: model.tail.weight (2, 3); "
        "1 of another shape: first.weight expected (8, 4, 5, 5), found (8, 3, 5, 5)"
    )
    assert torch.equal(network.norm.weight, tiny(0).norm.weight)
    assert torch.equal(network.last.weight, tiny(0).last.weight)


def test_of_many_faults_the_first_are_named_and_all_counted():
    extra = {f"extra.{index}": torch.zeros(1) for index in range(40)}
    with pytest.raises(BadCheckpoint, match=r"40 in excess: .*extra\.4 \(1\) and 35 more$"):
        load_parameters(Tiny(), changed(extra), PREFIXES)


def test_another_networks_weights_are_told_by_their_names():
    with pytest.raises(BadCheckpoint, match=r"another network's.*such as first\.weight.*what is there: unet\.in"):
        load_parameters(Tiny(), {"unet.in": torch.zeros(1)}, PREFIXES)


def test_what_only_training_needs_is_left_aside_if_the_export_says_so():
    tensors = changed({"discriminator.weight": torch.zeros(1)})
    load_parameters(Tiny(), tensors, PREFIXES, beside=("discriminator.",))
    with pytest.raises(BadCheckpoint, match=r"1 in excess: discriminator\.weight"):
        load_parameters(Tiny(), tensors, PREFIXES)


def test_a_constant_of_the_networks_own_may_be_there_if_it_is_the_same():
    load_parameters(Tiny(), changed({"middle": torch.full((1,), 0.5)}), PREFIXES)
    with pytest.raises(BadCheckpoint, match="1 in excess: middle"):
        load_parameters(Tiny(), changed({"middle": torch.full((1,), 0.4)}), PREFIXES)


def test_counters_of_batches_may_be_missing_and_halves_become_singles():
    network = tiny(0)
    halves = {name: tensor.half() for name, tensor in changed({"norm.num_batches_tracked": None}).items()}
    load_parameters(network, halves, PREFIXES)
    assert network.last.weight.dtype == torch.float32
    assert torch.equal(network.last.weight, tiny(1).last.weight.half().float())
