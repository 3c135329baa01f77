from __future__ import annotations

import pytest
import torch

from tests.training import sketches
from training.sketch import text


@pytest.fixture(scope="module")
def tokenizer():
    return sketches.tokenizer()


def test_a_caption_begins_and_ends_with_its_marks_and_is_padded(tokenizer) -> None:
    ids = text.tokens(tokenizer, ["a red apple"])

    end = ids[0].tolist().index(tokenizer.eos_token_id)
    assert ids.shape == (1, text.POSITIONS)
    assert ids[0, 0] == tokenizer.bos_token_id
    assert 2 <= end <= 6
    assert set(ids[0, end + 1 :].tolist()) == {tokenizer.pad_token_id}


def test_case_says_nothing(tokenizer) -> None:
    assert torch.equal(text.tokens(tokenizer, ["A Red APPLE"]), text.tokens(tokenizer, ["a red apple"]))


def test_a_long_caption_is_cut_and_still_ends(tokenizer) -> None:
    ids = text.tokens(tokenizer, ["a red apple and " * 20])

    assert ids.shape == (1, text.POSITIONS)
    assert ids[0, -1] == tokenizer.eos_token_id


def test_words_that_it_never_read_are_parts_and_not_lost(tokenizer) -> None:
    ids = tokenizer("zxqv ÿ").input_ids

    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == "zxqv ÿ"


def test_the_end_is_none_of_the_ids_that_clip_takes_for_an_old_mistake(tokenizer) -> None:
    assert tokenizer.eos_token_id != 2  # of 2, transformers pools at the largest id


def test_what_is_read_is_what_the_encoders_say_of_all_77_tokens(tokenizer) -> None:
    network = sketches.sketch(tokenizer)
    prompts = ["a red apple", "", "a green tree on a white background"]
    full = tokenizer(prompts, padding="max_length", max_length=text.CLIP_LENGTH, return_tensors="pt").input_ids

    read, pooled = network.read(text.tokens(tokenizer, prompts))

    outputs = [each(full, output_hidden_states=True) for each in (network.text_encoder, network.text_encoder_2)]
    states = torch.cat([output.hidden_states[-2] for output in outputs], dim=2)
    torch.testing.assert_close(read[:, : text.POSITIONS], states[:, : text.POSITIONS])
    torch.testing.assert_close(read[:, text.POSITIONS : -1].expand(-1, 61, -1), states[:, text.POSITIONS :])
    torch.testing.assert_close(pooled, torch.cat([output.text_embeds for output in outputs], dim=1))
    assert not read[:, -1].any()


def test_counts_add_up_to_the_tokens_of_a_prompt() -> None:
    assert text.counts(256).sum() == 77 + 256
    assert text.counts(0)[-1] == 0
