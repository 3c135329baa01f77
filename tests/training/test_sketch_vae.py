"""The autoencoder of limner-sketch and the latents that are cached with it, on a few pictures that are made here."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray

from training.sketch import latents, vae

CPU = torch.device("cpu")
NARROW = (8, 8, 8, 16)


def pictures(count: int = 12) -> NDArray[np.uint8]:
    """Make plain pictures (count, 128, 128, 3), each of its own colour."""
    colours = np.random.default_rng(0).integers(0, 256, size=(count, 1, 1, 3), dtype=np.uint8)
    return np.broadcast_to(colours, (count, 128, 128, 3)).copy()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a run of some seconds ended and another went on."""
    out = tmp_path_factory.mktemp("sketch")
    shown = pictures()
    some = vae.Pictures(shown, range(8), [(shown[8], "plain")])
    for _ in range(2):
        vae.train(some, (shown[8:10], shown[10:]), out, minutes=0.05, device=CPU, batch=2, widths=NARROW)
    return out


def test_a_run_writes_a_folder_that_diffusers_reads_and_goes_on_from_where_it_was(trained: Path) -> None:
    written = AutoencoderKL.from_pretrained(trained / "vae")
    assert written.config.latent_channels == 16
    assert written.config.scaling_factor != 0.18215, "it was measured"
    assert sum(file.stat().st_size for file in (trained / "vae").iterdir()) < 1e6
    steps = torch.load(trained / "vae.pt", weights_only=True)["step"]
    assert steps > json.loads((trained / "vae.json").read_text())["step"] or steps >= 2
    shown = pictures()[8:10]
    untrained = vae.psnr(vae.reconstructed(vae.network(NARROW), shown), shown)
    assert vae.psnr(vae.reconstructed(written.float(), shown), shown) > untrained
    assert (trained / "vae.png").exists()


def test_with_the_decoder_alone_cached_latents_stay_valid(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    cached = AutoencoderKL.from_pretrained(tmp_path / "vae")
    cached.register_to_config(shift_factor=0.25, scaling_factor=2.0)
    cached.save_config(tmp_path / "vae")
    before = torch.load(trained / "vae.pt", weights_only=True)["parts"]["average"]["network"]
    shown = pictures()
    some = vae.Pictures(shown, range(8), [])
    given = {"minutes": 0.03, "device": CPU, "batch": 2, "widths": NARROW}
    vae.train(some, (shown[8:10], shown[10:]), tmp_path, decoder_only=True, **given)
    after = torch.load(tmp_path / "vae.pt", weights_only=True)["parts"]
    for weights in (after["average"]["network"], after["vae"]):
        assert {name.split(".")[0] for name in before if not torch.equal(before[name], weights[name])} == {"decoder"}
    config = json.loads((tmp_path / "vae" / "config.json").read_text())
    assert (config["shift_factor"], config["scaling_factor"]) == (0.25, 2.0)


def test_hidden_weights_share_memory_with_their_matrices() -> None:
    network = vae.network(NARROW).to(memory_format=torch.channels_last)
    pairs = vae.hidden_weights(network, ("encoder.conv_in", "decoder.conv_out"))
    assert len(pairs) > 20
    for weight, matrix in pairs:
        assert matrix.shape == (len(weight), weight[0].numel())
        matrix.fill_(0.5)
        assert bool((weight == 0.5).all())
    assert not (network.encoder.conv_in.weight == 0.5).any(), "the ends aren't hidden"


def test_the_loss_of_a_perfect_decoder_is_that_of_the_latents_alone() -> None:
    torch.manual_seed(0)
    network = vae.network(NARROW)
    given = torch.zeros(1, 3, 64, 64)
    torch.nn.init.zeros_(network.decoder.conv_out.weight)
    torch.nn.init.zeros_(network.decoder.conv_out.bias)
    with torch.no_grad():
        least, other = vae.loss(network, given), vae.loss(network, given + 1)
        smaller = vae.loss(network, given + 1, reduced=True)
    assert 0 <= float(least) < 0.01
    assert float(other) == pytest.approx(2, abs=0.01), "1 at full size, 0.5 at each of the smaller two, no gradients"
    assert float(smaller) == pytest.approx(2, abs=0.01)


def test_psnr_of_a_known_error() -> None:
    black = np.zeros((2, 8, 8, 3), np.uint8)
    assert vae.psnr(black, black + 51) == pytest.approx(20 * np.log10(5))


def test_pixels_undo_what_tensors_do() -> None:
    shown = np.random.default_rng(0).integers(0, 256, size=(2, 8, 8, 3), dtype=np.uint8)
    np.testing.assert_array_equal(vae.pixels(vae.tensor(shown)), shown)


def test_an_emoji_in_twenty_five_is_unseen() -> None:
    assert not vae.unseen(None)
    assert 20 < sum(vae.unseen(str(number)) for number in range(1000)) < 60


def test_latents_are_normalised_and_the_autoencoder_says_how(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "sketch").mkdir()
    (trained / "vae").rename(tmp_path / "sketch/vae")
    shown = pictures()
    np.save(tmp_path / "sketch/scenes.npy", shown)
    latents.main(["--out", str(tmp_path), "--device", "cpu"])
    cached = np.load(tmp_path / "sketch/latents.npy")
    (tmp_path / "sketch/vae").rename(trained / "vae")
    assert cached.shape == (12, 16, 16, 16)
    assert cached.dtype == np.float16
    assert float(cached.mean()) == pytest.approx(0, abs=0.01)
    assert float(cached.std()) == pytest.approx(1, abs=0.01)
    network = AutoencoderKL.from_pretrained(trained / "vae", dtype=torch.float32)
    with torch.no_grad():
        own = torch.from_numpy(cached).float() / network.config.scaling_factor + network.config.shift_factor
        exact = network.encode(vae.tensor(shown)).latent_dist.mode()
    assert (own - exact).square().mean().sqrt() < 0.02 * exact.std(), "bfloat16 and float16 cost little"
