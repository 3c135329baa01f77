from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.training import sketches
from training.sketch import network, reading, text, train
from training.sketch.data import Captions, Latents

CPU = torch.device("cpu")


@pytest.fixture
def data(tmp_path) -> Latents:
    return Latents(sketches.write_latents(tmp_path / "data"))


def run(data: Latents, folder, steps: int, **options) -> network.Sketch:
    settings = {"rate": 5e-3, "reading_steps": 5, **options}
    return train.train(data, folder, minutes=10, device=CPU, sizes=sketches.SIZES, batch=16, steps=steps, **settings)


def test_it_learns_which_picture_belongs_to_which_caption(data, tmp_path) -> None:
    sketch = run(data, tmp_path / "run", 120)

    captions = Captions(data.captions, network.best(tmp_path / "run")[1])
    numbers = data.held_out
    ids = captions.draw(numbers, np.random.default_rng(0), without=0)
    right = train.held_out(sketch, data[numbers], ids)
    wrong = train.held_out(sketch, data[numbers], ids.roll(1, 0))
    assert right < 0.7  # a network that says nothing has 2
    assert wrong > 1.5 * right


def test_text_encoders_learn_what_captions_look_like_first(data, tmp_path) -> None:
    sizes, tokenizer = network.prepare(tmp_path / "run", data.captions, sketches.SIZES)
    torch.manual_seed(0)
    sketch = network.Sketch(sizes, tokenizer)
    captions, random = Captions(data.captions, tokenizer), np.random.default_rng(0)

    assert reading.teach(sketch, data, captions, random, steps=100) > 0.7  # a tenth has no caption


def test_a_run_goes_on_where_it_ended(data, tmp_path, capsys) -> None:
    run(data, tmp_path / "run", 3)
    first = torch.load(tmp_path / "run/checkpoint.pt", weights_only=True)
    run(data, tmp_path / "run", 3)
    second = torch.load(tmp_path / "run/checkpoint.pt", weights_only=True)

    assert (first["step"], second["step"]) == (3, 6)
    assert "goes on at step 3" in capsys.readouterr().out


def test_the_best_average_is_kept_and_not_the_last(data, tmp_path) -> None:
    folder = tmp_path / "run"
    run(data, folder, 5)
    best = network.best(folder)[0].state_dict()
    run(data, folder, 5, matrix_rate=100.0, rate=10.0)  # which ruins it

    again = network.best(folder)[0].state_dict()
    assert all(torch.equal(best[name], again[name]) for name in best)


def test_pictures_are_drawn_with_the_average(data, tmp_path) -> None:
    drawn = []
    sketch = run(data, tmp_path / "run", 1, draw=lambda *given: drawn.append(given))

    averaged, tokenizer, file = drawn[-1]
    assert averaged is sketch
    assert tokenizer.eos_token_id is not None
    assert file.parent == tmp_path / "run"


def test_a_tenth_of_the_captions_is_left_out(data, tmp_path) -> None:
    _, tokenizer = network.prepare(tmp_path / "run", data.captions, sketches.SIZES)
    captions = Captions(data.captions, tokenizer)
    numbers = np.zeros(2000, np.int64)

    ids = captions.draw(numbers, np.random.default_rng(0))

    empty = (ids[:, 1] == tokenizer.eos_token_id).float().mean()
    assert 0.07 < empty < 0.13
    assert len(set(map(tuple, ids.tolist()))) == 3  # both captions, and none


def test_latents_come_in_the_order_that_was_asked(data) -> None:
    both = data[np.array([0, 1])]

    assert both.shape == (2, 16, 16, 16)
    assert both.dtype == torch.float32
    assert torch.equal(both[1], data[np.array([1])][0])
    assert not torch.equal(both[0], both[1])


def test_rates_rise_stay_and_fall() -> None:
    assert train.factor(0, 0.0) == pytest.approx(1 / train.WARM_UP)
    assert train.factor(10_000, 0.5) == 1
    assert train.factor(10_000, 1 - train.FALL / 2) == pytest.approx(0.5)
    assert train.factor(10_000, 1.0) == 0


def test_every_parameter_is_stepped_by_one_optimiser(data, tmp_path) -> None:
    sizes, tokenizer = network.prepare(tmp_path / "run", data.captions, sketches.SIZES)
    sketch = network.Sketch(sizes, tokenizer)

    steppers = train.optimisers(sketch, 1e-3, 1e-3)

    stepped = [id(p) for stepper in steppers.values() for group in stepper.param_groups for p in group["params"]]
    assert sorted(stepped) == sorted(id(p) for p in sketch.parameters())
    assert len(steppers["muon"].param_groups[0]["params"]) == 12 + 9  # the last block leaves the text


def test_captions_begin_as_a_large_part_of_what_modulates_the_blocks(data, tmp_path) -> None:
    sizes, tokenizer = network.prepare(tmp_path / "run", data.captions, sketches.SIZES)
    torch.manual_seed(0)
    sketch = network.Sketch(sizes, tokenizer)

    with torch.no_grad():
        _, pooled = sketch.read(text.tokens(tokenizer, ["a red apple", "a blue car", "a green tree", "a cat"]))
        embedded = sketch.transformer.time_text_embed.text_embedder(pooled)

    assert embedded.std(dim=0).mean() > 0.4 * embedded.std()
