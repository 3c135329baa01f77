"""What judges limner-sketch: the classifier, and the evaluation that asks it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from training.sketch import classifier, evaluate
from training.sketch.emoji import COLOURS, Emoji, held_out

CPU = torch.device("cpu")
COLOURED = np.array([(200, 40, 45), (60, 100, 200), (80, 170, 80), (245, 215, 70), (130, 70, 175), (15, 15, 15)])


def plain(count: int, side: int, noise: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Make pictures of six classes, each of a colour."""
    labels = np.arange(count) % len(COLOURED)
    pictures = np.broadcast_to(COLOURED[labels][:, None, None], (count, side, side, 3))
    shaken = pictures + np.random.default_rng(noise).integers(-9, 10, size=pictures.shape)
    return np.clip(shaken, 0, 255).astype(np.uint8), labels


def emoji(number: int, name: str, *, colour: str | None = None, names: tuple[str, ...] = ()) -> Emoji:
    pixels = np.zeros((256, 256, 4), np.uint8)
    pixels[40:200, 40:200] = (200, 40, 45, 255)
    return Emoji(str(number), 4, (name, *names), None, name, colour, colour is not None, pixels)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("classifier")
    shown, labels = plain(60, classifier.SIDE)
    codes = [str(number) for number in range(len(COLOURED))]
    tests = plain(24, classifier.SIDE, noise=1)
    for _ in range(2):
        classifier.train(shown, labels, codes, tests, out, minutes=0.05, device=CPU, batch=12)
    return out / "classifier.pt"


def test_the_classifier_learns_to_tell_colours_apart_and_is_read_again(trained: Path) -> None:
    network, codes = classifier.load(trained)
    assert codes == ["0", "1", "2", "3", "4", "5"]
    pictures, labels = plain(24, 128, noise=2)
    assert classifier.ranked(network, pictures).shape == (24, 5)
    top_1, top_5 = classifier.measured(network, pictures, labels)
    assert top_1 > 0.3, "by chance a sixth"
    assert top_5 >= top_1


def test_a_classifier_that_is_not_trained_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        classifier.load(tmp_path / "classifier.pt")


def test_varied_pictures_differ_each_time_but_little() -> None:
    given = torch.zeros(4, 3, 64, 64)
    given[:, :, 20:44, 20:44] = 1.0
    chances = torch.Generator().manual_seed(0)
    first, second = classifier.varied(given, chances), classifier.varied(given, chances)
    assert first.shape == given.shape
    assert not torch.equal(first, second)
    assert float((first - given).abs().mean()) < 0.25
    assert bool((first[:, :, 30:34, 30:34] > 0.5).all()), "what is in the middle stays there"


def test_prompts_are_names_and_all_emoji_of_a_name_are_right() -> None:
    several = [emoji(0, "cat"), emoji(1, "tabby", names=("cat",)), emoji(2, "apple")]
    asked = {prompt.text: prompt.right for prompt in evaluate.prompts(several, 10)}
    assert asked == {"a cat": {"0", "1"}, "a tabby": {"1"}, "an apple": {"2"}}


def test_unseen_pairs_are_those_that_were_held_out() -> None:
    several = [emoji(number, f"thing{number}", colour="red") for number in range(20)]
    pairs = evaluate.unseen(several, 1000)
    assert len(pairs) == sum(held_out(one.noun, colour, several) for one in several for colour in COLOURS) > 5
    assert all(pair.colour in pair.text.split() and pair.colour != "red" for pair in pairs)


@pytest.mark.parametrize("background", [(255, 255, 255), (20, 20, 90)])
def test_the_colour_of_what_stands_before_the_background(background: tuple[int, int, int]) -> None:
    picture = np.full((64, 64, 3), background, np.uint8)
    assert evaluate.shown_colour(picture) is None
    for colour, name in (((200, 40, 45), "red"), ((40, 38, 42), "black"), ((215, 212, 210), "white")):
        picture[16:48, 16:48] = colour
        assert evaluate.shown_colour(picture) == name
    picture[16:48, 16:48] = 128
    assert evaluate.shown_colour(picture) is None


def test_an_evaluation_counts_what_is_right_and_writes_what_it_saw(trained: Path, tmp_path: Path) -> None:
    network, codes = classifier.load(trained)
    several = [emoji(number, f"thing{number}", colour="red") for number in range(6)]

    def draw(texts: Sequence[str]) -> NDArray[np.uint8]:
        return plain(len(texts), 64)[0]

    def nothing(texts: Sequence[str]) -> NDArray[np.uint8]:
        return np.full((len(texts), 64, 64, 3), 255, np.uint8)

    figures = evaluate.evaluate(several, network, codes, draw, tmp_path)
    assert set(figures) == {"top_1", "top_5", "unseen_top_5", "unseen_colour"}
    written = json.loads((tmp_path / "evaluation.json").read_text())
    assert {name: written[name] for name in figures} == figures
    right = [place for place in written["prompts"].values() if place is not None]
    assert figures["top_5"] == pytest.approx(len(right) / len(written["prompts"]))
    assert (tmp_path / "evaluation.png").exists()
    assert (tmp_path / "unseen.png").exists()
    assert evaluate.evaluate(several, network, codes, nothing, tmp_path)["unseen_colour"] == 0


def test_only_the_right_emoji_among_the_five_likeliest_counts() -> None:
    class Fixed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scores = torch.nn.Parameter(torch.arange(8.0))

        def forward(self, pictures: torch.Tensor) -> torch.Tensor:
            return self.scores.expand(len(pictures), -1)

    asked = [evaluate.Prompt("a", frozenset({"7"})), evaluate.Prompt("b", frozenset({"3", "1"}))]
    asked.append(evaluate.Prompt("c", frozenset({"0"})))
    codes = [str(number) for number in range(8)]
    drawn = np.zeros((3, 16, 16, 3), np.uint8)
    assert evaluate.judged(Fixed(), codes, asked, drawn) == [0, 4, None]
