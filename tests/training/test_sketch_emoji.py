"""Emoji, their captions and the scenes that are drawn of them."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from training.sketch.emoji import (
    BACKGROUNDS,
    COLOURS,
    OFTEN,
    SIDE,
    Emoji,
    Scenes,
    captions,
    colour_of,
    composed,
    drawn,
    held_out,
    read,
    recolour,
    write,
)

RED, GREEN, BLUE = (200, 40, 45), (80, 170, 80), (60, 100, 200)
GRASS = np.full((150, 200, 3), (40, 120, 30), np.uint8)


def disc(colour: tuple[int, int, int], leaf: tuple[int, int, int] | None = None) -> NDArray[np.uint8]:
    """Draw a disc with alpha, of 256 pixels, perhaps with a leaf of another colour on top."""
    pixels = np.zeros((256, 256, 4), np.uint8)
    cv2.circle(pixels, (128, 140), 100, (*colour, 255), -1)
    if leaf is not None:
        cv2.circle(pixels, (128, 40), 30, (*leaf, 255), -1)
    return pixels


APPLE = disc(RED, GREEN)


def emoji(name: str = "red apple", colour: str | None = "red", coloured: bool = True, **others: object) -> Emoji:
    given = {"code": name, "group": 4, "names": (name, "fruit"), "general": None, "noun": name.split()[-1], **others}
    return Emoji(**given, colour=colour, coloured=coloured, pixels=APPLE)  # type: ignore[arg-type]


def packages(root: Path) -> Path:
    """Write the two packages with five entries, of which two are worth learning."""
    drawings = root / "npm/lobehub-fluent-emoji-3d-1.1.0/package/assets"
    names = root / "npm/emojibase-data-17.0.0/package/en"
    (names / "shortcodes").mkdir(parents=True)
    drawings.mkdir(parents=True)
    entries = [
        {"label": "red apple", "hexcode": "1F34E", "group": 4, "subgroup": 42, "tags": ["fruit", "apple"]},
        {"label": "soccer ball", "hexcode": "26BD-FE0F", "group": 6, "subgroup": 62, "tags": ["ball"]},
        {"label": "flag: France", "hexcode": "1F1EB", "group": 9, "subgroup": 98, "tags": []},
        {"label": "man farmer", "hexcode": "1F468", "group": 1, "subgroup": 25, "tags": []},
        {"label": "ten o’clock", "hexcode": "1F559", "group": 5, "subgroup": 58, "tags": []},
        {"label": "without a drawing", "hexcode": "1FFFF", "group": 4, "subgroup": 42, "tags": []},
    ]
    for entry in entries[:-1]:
        pixels = cv2.cvtColor(disc(RED, GREEN), cv2.COLOR_RGBA2BGRA)
        cv2.imwrite(str(drawings / f"{str(entry['hexcode']).lower()}.webp"), pixels)
    (names / "data.json").write_text(json.dumps(entries))
    (names / "shortcodes/emojibase.json").write_text(
        json.dumps({"1F34E": ["red_apple", "apple2"], "26BD-FE0F": "soccer"})
    )
    (names / "shortcodes/github.json").write_text(json.dumps({"1F34E": "apple"}))
    return root


def test_read_takes_what_is_worth_learning_with_all_its_names(tmp_path: Path) -> None:
    apple, ball = read(packages(tmp_path))
    assert apple.names == ("red apple", "apple")
    assert (apple.noun, apple.colour, apple.coloured, apple.general) == ("apple", "red", True, "fruit")
    assert ball.names == ("soccer ball", "soccer")
    assert ball.general == "ball"
    assert apple.pixels.shape == (256, 256, 4)
    assert apple.pixels[140, 128, 0] > 180, "red comes first"


@pytest.mark.parametrize("name", COLOURS)
def test_a_thing_is_turned_to_each_colour_and_its_leaf_is_not(name: str) -> None:
    drawing = disc(RED, GREEN)
    turned = recolour(drawing, COLOURS[name])
    red, green, blue = (int(value) for value in turned[140, 128, :3])
    assert colour_of(disc((red, green, blue))) == (None if name in ("black", "white") else name)
    assert np.abs(turned[140, 128, :3].astype(int) - drawing[140, 128, :3]).max() > 3
    np.testing.assert_allclose(turned[30, 128], drawing[30, 128], atol=2)
    np.testing.assert_array_equal(turned[..., 3], drawing[..., 3])


def test_without_a_dominant_colour_nothing_is_turned() -> None:
    drawing = disc((128, 128, 128))
    assert colour_of(drawing) is None
    assert recolour(drawing, COLOURS["blue"]) is drawing


def test_captions_say_the_name_most_often() -> None:
    called = captions(emoji())
    assert called[0] == called[1] == "a red apple"
    assert {"red apple", "a fruit", "fruit"} < set(called)
    assert sum("background" in caption for caption in called) == 1


def test_captions_of_another_colour_all_say_it_and_none_says_the_first() -> None:
    called = captions(emoji(), "blue")
    assert called[0] == "a blue apple"
    assert all("blue" in caption and "red" not in caption for caption in called)


def test_captions_say_the_background() -> None:
    assert all(caption.endswith(" on a light blue background") for caption in captions(emoji(), None, "light blue"))
    assert "a red apple in a photograph of grass" in captions(emoji(), None, "a photograph of grass")


def test_names_have_the_article_that_fits() -> None:
    assert captions(emoji("grapes"))[0] == "grapes"
    assert captions(emoji("octopus"))[0] == "an octopus"
    assert captions(emoji("unicorn"))[0] == "a unicorn"


def test_composed_mixes_by_alpha() -> None:
    drawing = np.full((64, 64, 4), (255, 0, 0, 128), np.uint8)
    laid = composed(drawing, np.zeros((SIDE, SIDE, 3), np.uint8), 32, 10, 20)
    np.testing.assert_array_equal(laid[10:42, 20:52], np.broadcast_to(np.array([128, 0, 0], np.uint8), (32, 32, 3)))
    assert laid.sum() == 32 * 32 * 128


def test_scenes_are_the_same_from_the_same_seed() -> None:
    scenes = Scenes([emoji()], [(GRASS, "grass")])
    first, second = (scenes.draw(0, np.random.default_rng(7)) for _ in range(2))
    np.testing.assert_array_equal(first.pixels, second.pixels)
    assert first.captions == second.captions


def test_things_stand_at_one_place_on_plain_backgrounds_and_anywhere_in_photographs() -> None:
    scenes, random = Scenes([emoji()], [(GRASS, "grass")]), np.random.default_rng(0)
    white = [scenes.place(scenes.emoji[0], random).pixels for _ in range(4)]
    assert all(np.array_equal(white[0], other) for other in white)
    outside = {
        tuple(
            np.flatnonzero(
                (scenes.place(scenes.emoji[0], random, background="photograph").pixels != GRASS[0, 0]).any((0, 2))
            )[[0, -1]]
        )
        for _ in range(4)
    }
    assert len(outside) > 2


def test_pairs_that_are_held_out_are_never_drawn() -> None:
    several = [emoji(f"red thing{number}", code=str(number)) for number in range(8)]
    scenes = Scenes(several)
    held = {(one.code, colour) for one in several for colour in COLOURS if held_out(one.noun, colour, several)}
    assert held, "of 72 pairs some are"
    assert all(colour != "red" for _, colour in held), "what there is isn't held out"
    shown = {(scene.code, scene.colour) for scene in drawn(scenes, np.random.default_rng(0))}
    assert not held & shown
    assert len({colour for _, colour in shown}) > 5


def test_without_photographs_backgrounds_are_plain() -> None:
    scenes = Scenes([emoji()])
    assert {scene.background for scene in drawn(scenes, np.random.default_rng(0))} <= {"white", *BACKGROUNDS}
    with pytest.raises(ValueError, match="no photographs"):
        scenes.photograph(np.random.default_rng(0))


def test_photographs_alone_are_called_what_they_show() -> None:
    scene = Scenes([], [(GRASS, "green grass")]).photograph(np.random.default_rng(0))
    assert scene.captions[0] == "a photograph of green grass"
    np.testing.assert_array_equal(scene.pixels, np.broadcast_to(GRASS[:1, :1], (SIDE, SIDE, 3)))


def test_what_is_written_belongs_together(tmp_path: Path) -> None:
    scenes = Scenes([emoji(), emoji("green pear", colour="green")], [(GRASS, "grass")])
    random = np.random.default_rng(0)
    count = write(drawn(scenes, random, photographs_alone=100), tmp_path, random)
    split = json.loads((tmp_path / "split.json").read_text())
    assert sorted({*split["train"], *split["held_out"]}) == list(range(count))
    assert split["held_out"]
    assert not set(split["train"]) & set(split["held_out"])
    assert np.load(tmp_path / "scenes.npy").shape == (count, SIDE, SIDE, 3)
    assert len(json.loads((tmp_path / "captions.json").read_text())) == count
    shown = json.loads((tmp_path / "scenes.json").read_text())
    assert len(shown) == count
    plain = [row for row, one in enumerate(shown) if one["code"] and not one["colour"] and one["background"] == "white"]
    assert [split["train"].count(row) for row in plain] == [OFTEN, OFTEN]
