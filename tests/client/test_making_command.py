"""The commands that make pictures from text, and what they keep, against the made-up router."""

from __future__ import annotations

import io
import json

import pytest
from click.testing import CliRunner
from PIL import Image
from rich.console import Console

from limner.client import previews
from limner.client.command import limner
from limner.client.terminal import Bars
from limner.v1 import images_pb2, progress_pb2, router_pb2

APPLE = "a red apple"


@pytest.fixture
def run(router):
    def invoke(*arguments, stdin=None):
        return CliRunner(env={"LIMNER_ADDRESS": router.address}).invoke(
            limner, [str(a) for a in arguments], input=stdin
        )

    return invoke


def text_in(path):
    """The prompt, which the made-up router writes in pixels."""
    return bytes(Image.open(path).tobytes()).decode()


def test_generate_writes_a_picture_and_tells_its_seed(run, router, tmp_path):
    out = tmp_path / "apple.png"
    result = run(
        "generate", APPLE, "-o", out, "--steps", 4, "--guidance", 5, "--width", 96, "--height", 64, "--seed", 7,
        "--sampler", "heun", "--negative", "blur", "--model", "tiny", "--lora", "ink", "--lora", "a:b:-0.5",
        "--text-length", 77, "--truncate", "--step-cache", 3, "--skip-layers", "7,8", "--shift", 2.5, "--weight", 2,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert text_in(out) == APPLE
    assert f"wrote {out}, seed 7" in result.stderr
    assert result.stdout == ""
    step = router.requests[0].pipeline.steps[0]
    options = step.generate.options
    assert (step.generate.prompt, step.output.format, options.sampler) == (APPLE, "png", "heun")
    assert (options.step_count, options.guidance_scale, options.width_px, options.height_px) == (4, 5, 96, 64)
    assert [(lora.name, lora.scale) for lora in options.loras] == [("ink", 1), ("a:b", -0.5)]
    assert (list(options.skip_layer_guidance.layers), options.step_cache.interval) == ([7, 8], 3)
    assert (options.truncate_prompt, options.text_length, options.schedule_shift, options.weight) == (True, 77, 2.5, 2)
    assert not router.requests[0].previews


def test_what_is_not_said_is_left_to_the_model(run, router, tmp_path):
    assert run("generate", APPLE, "-o", tmp_path / "apple.png").exit_code == 0
    assert router.requests[0].pipeline.steps[0].generate.options.ByteSize() == 0


def test_several_pictures_get_a_number_and_their_own_seed(run, tmp_path):
    result = run("generate", APPLE, "-o", tmp_path / "apple.png", "--count", 3, "--seed", 7)
    assert result.exit_code == 0, result.output
    assert [text_in(tmp_path / f"apple-{i}.png") for i in (1, 2, 3)] == [APPLE, f"{APPLE}#1", f"{APPLE}#2"]
    assert "apple-3.png, seed 9" in result.stderr
    told = json.loads(run("info", tmp_path / "apple-3.png", "--json").stdout)
    assert told["recipe"]["seed"] == 9
    result = run("generate", APPLE, "-o", tmp_path / "apple.png", "--count", 2, "--json")
    assert json.loads(result.stdout.splitlines()[-1]) == {
        "written": {"generate": [str(tmp_path / "apple-1.png"), str(tmp_path / "apple-2.png")]},
        "seeds": [41, 42],
    }


def test_info_shows_what_a_picture_was_made_from(run, tmp_path):
    run("generate", APPLE, "-o", tmp_path / "apple.png", "--seed", 7)
    result = run("info", tmp_path / "apple.png")
    assert result.exit_code == 0, result.output
    lines = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
    assert (lines["format"], lines["size"], lines["seed"], lines["prompt"]) == ("png", "11 x 1", "7", APPLE)
    assert lines["sampler"] == "euler"
    told = json.loads(run("info", tmp_path / "apple.png", "--json").stdout)
    assert (told["width_px"], told["height_px"], told["recipe"]["model_digest"]) == (11, 1, "ab" * 32)
    assert told["texts"]["parameters"].startswith(APPLE)


def test_info_shows_files_that_others_made(run, tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "photo.jpg")
    assert run("info", tmp_path / "photo.jpg").stdout.splitlines()[:2] == ["format  jpeg", "size    40 x 30"]
    (tmp_path / "notes.txt").write_text("no picture")
    result = run("info", tmp_path / "notes.txt")
    assert (result.exit_code, "no picture of a format known here" in result.stderr) == (1, True)
    (tmp_path / "cut.png").write_bytes((tmp_path / "photo.jpg").read_bytes()[:0] + b"\x89PNG\r\n\x1a\ncut")
    result = run("info", tmp_path / "cut.png")
    assert (result.exit_code, "damaged or cut off" in result.stderr) == (1, True)


def test_info_gives_the_terminal_no_commands_from_a_file(run, router, tmp_path):
    router.parameters = {"prompt": "an \x1b]0;owned\a apple\nsecond line"}
    run("generate", APPLE, "-o", tmp_path / "apple.png")
    shown = run("info", tmp_path / "apple.png").stdout
    assert "\x1b" not in shown
    assert "\a" not in shown
    assert "second line" in shown


def test_a_picture_is_made_again_from_its_file(run, router, tmp_path):
    router.parameters = {"loras": '[{"name": "ink", "scale": 0.5}]', "image_count": "3", "negative_prompt": "blur"}
    run("generate", APPLE, "-o", tmp_path / "apple.png", "--count", 3, "--seed", 7)
    made = tmp_path / "apple-2.png"
    result = run("generate", "--from", made, "-o", tmp_path / "again.png", "--steps", 50)
    assert result.exit_code == 0, result.output
    step = router.requests[-1].pipeline.steps[0].generate
    assert (step.prompt, step.options.seed, step.options.step_count) == (APPLE, 8, 50)
    assert (step.options.negative_prompt, step.options.sampler, step.options.model) == ("blur", "euler", "tiny")
    assert (step.options.width_px, step.options.HasField("image_count")) == (1024, False)
    assert [(lora.name, lora.scale) for lora in step.options.loras] == [("ink", 0.5)]
    assert run("generate", "a pear", "--from", made, "-o", tmp_path / "pear.png").exit_code == 0
    assert router.requests[-1].pipeline.steps[0].generate.prompt == "a pear"


def test_what_cannot_be_made_again_is_told(run, router, photo, tmp_path):
    (tmp_path / "plain.png").write_bytes(router.png_of("plain"))
    run("edit", photo, "-o", tmp_path / "edited.png")
    sent = len(router.requests)
    for name, said in {"plain.png": "doesn't tell", "edited.png": "made by `limner edit`", "photo.png": "PNG"}.items():
        result = run("generate", "--from", tmp_path / name, "-o", tmp_path / "out.png")
        assert result.exit_code == 2
        assert said in " ".join(result.stderr.split())
    assert len(router.requests) == sent


def test_parameters_can_be_left_out_and_other_formats_hold_none(run, router, tmp_path):
    run("generate", APPLE, "-o", tmp_path / "apple.png", "--no-parameters")
    assert (tmp_path / "apple.png").read_bytes() == router.png_of(APPLE)
    result = run("generate", APPLE, "-o", "-", "-q")
    assert Image.open(io.BytesIO(result.stdout_bytes)).text["parameters"].startswith(APPLE)
    assert result.stderr == ""


def test_edit_changes_an_object_a_masked_area_or_all(run, router, photo, tmp_path):
    out = tmp_path / "pear.png"
    result = run("edit", photo, "a pear", "-o", out, "--click", "4,5", "--grow", 3, "--strength", 0.9, "--steps", 4)
    assert result.exit_code == 0, result.output
    steps = router.requests[-1].pipeline.steps
    assert [step.name for step in steps] == ["segment", "soften", "edit"]
    assert (steps[2].edit.prompt, steps[2].edit.options.strength) == ("a pear", 0.9)
    assert steps[2].edit.options.generate.step_count == 4
    assert json.loads(run("info", out, "--json").stdout)["recipe"]["operation"] == "edit"
    assert run("edit", photo, "-o", out, "--mask", photo, "--crop-margin", 32).exit_code == 0
    edit = router.requests[-1].pipeline.steps[0].edit
    assert (edit.mask, edit.prompt, edit.options.crop_margin_px) == ("mask", "", 32)
    assert run("edit", photo, "-o", out, "--count", 2).exit_code == 0
    assert router.requests[-1].pipeline.steps[0].edit.mask == ""
    assert (tmp_path / "pear-2.png").is_file()


def test_outpaint_extends_the_sides_that_are_given(run, router, photo, tmp_path):
    result = run("outpaint", photo, "a meadow", "-o", tmp_path / "wide.webp", "--left", 64, "--top", 8, "--feather", 0)
    assert result.exit_code == 0, result.output
    step = router.requests[-1].pipeline.steps[0]
    assert (step.outpaint.prompt, step.output.format) == ("a meadow", "webp")
    assert (step.outpaint.options.left_px, step.outpaint.options.top_px, step.outpaint.options.right_px) == (64, 8, 0)
    assert step.outpaint.options.HasField("feather_px")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["generate", "-o", "out.png"], "say what the picture shows"),
        (["generate", APPLE, "-o", "-", "--count", "2"], "standard output takes one picture"),
        (["generate", APPLE, "-o", "out.png", "--lora", "ink:much"], "is not NAME or NAME:SCALE"),
        (["generate", APPLE, "-o", "out.png", "--skip-layers", "7;8"], "is not of the form 7,8,9"),
        (["generate", APPLE, "-o", "out.png", "--steps", "0"], "1<=x<=1000"),
        (["generate", APPLE, "-o", "-", "--json"], "give -o a file"),
        (["edit", "PHOTO", "-o", "out.png", "--strength", "0"], "0<x<=1"),
        (["edit", "PHOTO", "-o", "out.png", "--mask", "PHOTO", "--click", "1,1"], "not both"),
        (["edit", "PHOTO", "-o", "out.png", "--feather", "3"], "go with a mask"),
        (["edit", "-", "-o", "out.png", "--mask", "-"], "only one of image and mask"),
        (["outpaint", "PHOTO", "-o", "out.png"], "left, top, right or bottom"),
        (["run", "PIPELINE", "-o", "out"], "give at least one picture"),
    ],
)
def test_wrong_usage_exits_with_2_and_says_the_mend(run, router, photo, arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pipeline = tmp_path / "pipeline.yaml"
    pipeline.write_text("steps: [{name: variation, edit: {}}]")
    places = {"PHOTO": photo, "PIPELINE": pipeline}
    result = run(*[places.get(argument, argument) for argument in arguments])
    assert result.exit_code == 2, result.output
    assert said in " ".join(result.stderr.split())
    assert not router.requests


def test_a_pipelines_file_may_need_no_picture_and_give_several(run, router, tmp_path):
    pipeline = tmp_path / "apples.yaml"
    pipeline.write_text("steps: [{name: apple, generate: {prompt: an apple, options: {image_count: 2}}}]")
    result = run("run", pipeline, "-o", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.output
    names = [str(tmp_path / "out" / f"apple-{i}.png") for i in (1, 2)]
    assert json.loads(result.stdout.splitlines()[-1]) == {"written": {"apple": names}}
    assert text_in(names[1]) == "an apple#1"


def test_a_batch_gives_a_folder_for_each_of_several_pictures(run, photo, tmp_path):
    pipeline = tmp_path / "variations.yaml"
    pipeline.write_text("steps: [{name: other, edit: {prompt: other, options: {generate: {image_count: 2}}}}]")
    album = tmp_path / "album"
    album.mkdir()
    (album / "a.png").write_bytes(photo.read_bytes())
    assert run("batch", pipeline, album, "-o", tmp_path / "out").exit_code == 0
    assert text_in(tmp_path / "out" / "2" / "a.png") == "other#1"
    assert "1 skipped" in run("batch", pipeline, album, "-o", tmp_path / "out").stderr


def test_models_are_loaded_and_unloaded(run, router):
    result = run("models", "load", "tiny", "lama")
    assert result.exit_code == 0, result.output
    assert "tiny: loaded" in result.stderr
    assert json.loads(run("models", "unload", "tiny", "--json").stdout.splitlines()[-1])["state"] == (
        "MODEL_STATE_INSTALLED"
    )
    assert router.loads == ["+tiny", "+lama", "-tiny"]
    result = run("models", "load", "unknown")
    assert (result.exit_code, "UNKNOWN_MODEL" in result.stderr) == (1, True)


# Previews


def test_previews_are_written_over_each_other(run, router, tmp_path):
    shown = tmp_path / "preview.png"
    result = run(
        "generate", APPLE, "-o", tmp_path / "apple.png", "--preview-file", shown, "--preview-interval", 2, "--count", 2
    )
    assert result.exit_code == 0, result.output
    assert router.requests[0].previews
    assert router.requests[0].pipeline.steps[0].generate.options.preview_interval == 2
    assert shown.read_bytes() == router.png_of(APPLE)
    assert (tmp_path / "preview-2.png").read_bytes() == router.png_of(f"{APPLE}#1")


def test_previews_without_a_terminal_are_told_where_to_go(run, router, tmp_path):
    result = run("generate", APPLE, "-o", tmp_path / "apple.png", "--preview")
    assert result.exit_code == 0
    assert "--preview-file" in result.stderr
    assert router.requests[0].previews


@pytest.mark.parametrize(
    ("environment", "colours", "way"),
    [
        ({"TERM": "xterm-kitty"}, "truecolor", "kitty"),
        ({"KITTY_WINDOW_ID": "1", "TERM": "xterm-256color"}, "256", "kitty"),
        ({"TERM_PROGRAM": "ghostty"}, "truecolor", "kitty"),
        ({"TERM_PROGRAM": "iTerm.app"}, "truecolor", "iterm"),
        ({"LC_TERMINAL": "iTerm2"}, "truecolor", "iterm"),
        ({"TERM_PROGRAM": "WezTerm"}, "truecolor", "iterm"),
        ({"TERM_PROGRAM": "iTerm.app", "TMUX": "/tmp/tmux"}, "truecolor", "blocks"),
        ({"TERM": "screen.xterm-kitty", "KITTY_WINDOW_ID": "1"}, "256", None),
        ({"TERM": "xterm-256color"}, "truecolor", "blocks"),
        ({"TERM": "xterm-256color"}, "256", None),
        ({"TERM": "dumb"}, None, None),
    ],
)
def test_the_environment_says_how_a_terminal_shows_pictures(environment, colours, way):
    assert previews.way_of(environment, colours) == way


def test_blocks_hold_two_pixels_a_character():
    file = io.BytesIO()
    image = Image.new("RGB", (2, 2), (255, 0, 0))
    image.putpixel((1, 1), (0, 0, 255))
    image.save(file, "PNG")
    assert previews.paint("blocks", file.getvalue(), columns=2, rows=1, number=0) == (
        "\x1b[38;2;255;0;0m\x1b[48;2;255;0;0m▀\x1b[38;2;255;0;0m\x1b[48;2;0;0;255m▀\x1b[0m"
    )


def test_kitty_gets_png_files_in_pieces_and_answers_nothing(router):
    big = io.BytesIO()
    Image.effect_noise((128, 128), 90).save(big, "PNG")
    text = previews.paint("kitty", big.getvalue(), columns=32, rows=16, number=1)
    commands = text.split("\x1b\\")[:-1]
    assert len(commands) > 2
    assert commands[0].startswith("\x1b_Ga=T,f=100,q=2,C=1,i=2,p=1,c=32,r=16,m=1;")
    assert all(command.startswith("\x1b_Gm=1;") for command in commands[1:-1])
    assert commands[-1].startswith("\x1b_Gm=0;")
    jpeg = io.BytesIO()
    Image.new("RGB", (4, 4)).save(jpeg, "JPEG")
    assert ";iVBORw0KGgo" in previews.paint("kitty", jpeg.getvalue(), columns=2, rows=1, number=0)  # PNG in base64


def test_without_pillow_only_what_needs_no_reading_is_drawn(router, monkeypatch):
    monkeypatch.setattr(previews, "_has_pillow", lambda: False)
    file = router.png_of(APPLE)
    assert previews.paint("kitty", file, columns=2, rows=1, number=0)
    assert previews.paint("iterm", b"\xff\xd8\xff", columns=2, rows=1, number=0)
    assert previews.paint("kitty", b"\xff\xd8\xff", columns=2, rows=1, number=0) is None
    assert previews.paint("blocks", file, columns=2, rows=1, number=0) is None


def test_a_preview_that_cannot_be_read_is_not_drawn():
    assert previews.paint("blocks", b"\xff\xd8\xff", columns=2, rows=1, number=0) is None


def test_previews_stand_side_by_side_above_the_bars(router):
    file = io.BytesIO()
    Image.new("RGB", (64, 64), (10, 20, 30)).save(file, "PNG")
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, width=80, height=24, color_system="truecolor")
    with Bars(console, "blocks") as bars:
        bars.show(router_pb2.RunEvent(accepted=router_pb2.RunAccepted(steps=["generate"])))
        for index in (0, 1, 2):
            preview = progress_pb2.Preview(image=images_pb2.Image(encoded=file.getvalue()), image_index=index)
            bars.show(router_pb2.RunEvent(step="generate", preview=preview))
    text = written.getvalue()
    # 16 rows, and the one of the bar that the cursor is in; pictures are 32 characters wide, with one between.
    assert text.count("\x1b7\x1b[16A\x1b[1G") == 1
    assert text.count("\x1b7\x1b[16A\x1b[34G") == 1
    assert text.count("\x1b7") == text.count("\x1b8") == 2  # there is no room for the third
    assert text.count("▀") == 2 * 16 * 32


def test_a_preview_wider_than_the_terminal_keeps_its_shape():
    file = io.BytesIO()
    Image.new("RGB", (64, 16)).save(file, "PNG")
    written = io.StringIO()
    screen = previews.Screen(Console(file=written, force_terminal=True, width=64, height=40), "blocks", 1)
    assert screen.draw(0, file.getvalue())
    assert written.getvalue().count("▀") == 64 * 8
