"""Prompts are encoded as diffusers' pipeline encodes them, refused when they are too long, and encoded once."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from limner.core.errors import BadArgument
from limner.diffusion.lora.adapters import Adapters
from limner.diffusion.lora.lora import Lora, LowRank, ScaledLora
from limner.diffusion.sd3.components import Components
from limner.diffusion.sd3.text import TextEncoder
from limner.diffusion.tiny import WORDS, sd3_pipeline

PARTS = (
    "transformer",
    "text_encoder",
    "text_encoder_2",
    "text_encoder_3",
    "tokenizer",
    "tokenizer_2",
    "tokenizer_3",
    "vae",
)
LONG = " ".join((WORDS * 10)[:100])  # 102 tokens with their ends


def components(pipeline: Any, dtype: torch.dtype = torch.float32) -> Components:
    return Components(**{name: getattr(pipeline, name) for name in PARTS}, device=torch.device("cpu"), dtype=dtype)


def low_rank(width: int, seed: int = 0) -> LowRank:
    generator = torch.Generator().manual_seed(seed)
    return LowRank(torch.randn(2, width, generator=generator), torch.randn(width, 2, generator=generator), 0.5)


def published_pipeline(*, t5: bool) -> Any:
    pipeline = sd3_pipeline(text_encoder_3=t5)
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()  # T5 drops values out while it is trained
    return pipeline


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return published_pipeline(t5=True)


@pytest.fixture(scope="module")
def without_t5() -> Any:
    return published_pipeline(t5=False)


@pytest.fixture
def calls(pipeline: Any) -> Any:
    """How often CLIP ran."""
    seen: list[Any] = []
    hook = pipeline.text_encoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs))
    yield seen
    hook.remove()


def expected(pipeline: Any, prompt: str, text_length: int) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        text, _, pooled, _ = pipeline.encode_prompt(
            prompt, None, None, max_sequence_length=text_length, do_classifier_free_guidance=False
        )
    return text[0], pooled[0]


@pytest.mark.parametrize("text_length", [16, 77, 512])
@pytest.mark.parametrize("prompt", ["a red apple", "", LONG])
@pytest.mark.parametrize("t5", [True, False])
def test_prompts_are_encoded_as_the_pipeline_does(
    t5: bool, prompt: str, text_length: int, pipeline: Any, without_t5: Any
) -> None:
    published = pipeline if t5 else without_t5
    encoder = TextEncoder(components(published), cache_bytes=0)
    text, pooled = expected(published, prompt, text_length)
    encoded = encoder.encode(prompt, text_length=text_length, truncate=True)
    assert encoded.text.shape == (77 + text_length, 64)
    assert (encoded.text - text).abs().max() < 1e-5
    assert (encoded.pooled - pooled).abs().max() < 1e-5


def test_encodings_are_in_the_dtype_of_the_components(pipeline: Any) -> None:
    encoder = TextEncoder(components(pipeline, torch.bfloat16), cache_bytes=1 << 20)
    encoded = encoder.encode("a red apple", text_length=77, truncate=False)
    assert encoded.text.dtype == encoded.pooled.dtype == torch.bfloat16
    assert not encoded.text.requires_grad


@pytest.mark.parametrize(
    ("t5", "text_length", "word_count", "limit"), [(True, 77, 76, 77), (True, 100, 99, 100), (False, 512, 76, 77)]
)
def test_prompts_that_are_too_long_are_refused(
    t5: bool, text_length: int, word_count: int, limit: int, pipeline: Any, without_t5: Any
) -> None:
    encoder = TextEncoder(components(pipeline if t5 else without_t5), cache_bytes=1 << 20)
    words = (WORDS * 10)[:word_count]
    with pytest.raises(BadArgument, match=f"negative_prompt has {word_count + 2} tokens.* reads {limit}") as caught:
        encoder.encode(" ".join(words), text_length=text_length, truncate=False, field="negative_prompt")
    assert [each.field for each in caught.value.violations] == ["negative_prompt"]
    encoder.encode(" ".join(words), text_length=text_length, truncate=True)
    fits = " ".join(words[: limit - 2])
    whole = encoder.encode(fits, text_length=text_length, truncate=False)
    cut = encoder.encode(" ".join(words), text_length=text_length, truncate=True)
    assert (whole.text - cut.text).abs().max() < 1e-5
    with pytest.raises(BadArgument):  # that it is cut for somebody changes nothing for others
        encoder.encode(" ".join(words), text_length=text_length, truncate=False)


def test_clip_reads_the_beginning_of_what_t5_reads_whole(pipeline: Any) -> None:
    encoder = TextEncoder(components(pipeline), cache_bytes=1 << 20)
    long = encoder.encode(LONG, text_length=128, truncate=False)
    longer = encoder.encode(f"{LONG} {LONG[:20]}", text_length=128, truncate=False)
    assert torch.equal(long.text[:77], longer.text[:77])
    assert not torch.equal(long.text[77:], longer.text[77:])


def test_prompts_are_encoded_once(pipeline: Any, calls: Sequence[Any]) -> None:
    encoder = TextEncoder(components(pipeline), cache_bytes=1 << 20)
    first = encoder.encode("a cat", text_length=77, truncate=False)
    assert encoder.encode("a cat", text_length=77, truncate=True) is first
    assert len(calls) == 1
    assert encoder.encode("a cat", text_length=78, truncate=False).text.shape[0] == 155
    assert encoder.encode("a dog", text_length=77, truncate=False) is not first
    assert len(calls) == 3


def test_what_was_used_last_is_kept(pipeline: Any, calls: Sequence[Any]) -> None:
    size = TextEncoder(components(pipeline), cache_bytes=0).encode("", text_length=77, truncate=False).byte_count
    encoder = TextEncoder(components(pipeline), cache_bytes=2 * size + 1)
    calls_before = len(calls)
    for prompt in ["a cat", "a dog", "a cat", "a tree", "a cat", "a dog"]:
        encoder.encode(prompt, text_length=77, truncate=False)
    assert len(calls) - calls_before == 4  # the cat stayed, the dog went


def test_nothing_is_kept_where_nothing_fits(pipeline: Any, calls: Sequence[Any]) -> None:
    encoder = TextEncoder(components(pipeline), cache_bytes=0)
    for _ in range(2):
        encoder.encode("a cat", text_length=77, truncate=False)
    assert len(calls) == 2


def test_threads_that_ask_for_the_same_wait_for_one(pipeline: Any, calls: Sequence[Any]) -> None:
    encoder = TextEncoder(components(pipeline), cache_bytes=1 << 22)
    together, results = threading.Barrier(8), {}

    def ask(index: int) -> None:
        together.wait()
        for round_ in range(5):
            results[index, round_] = encoder.encode(f"{WORDS[round_]}", text_length=77 + round_, truncate=False)

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 5
    assert len(results) == 40
    assert len({id(each) for each in results.values()}) == 5


@pytest.mark.parametrize(
    ("component", "path", "width"),
    [
        ("text_encoder", "text_model.encoder.layers.0.self_attn.q_proj", 32),
        ("text_encoder_2", "text_model.encoder.layers.1.self_attn.v_proj", 32),
        ("text_encoder_3", "encoder.block.0.layer.0.SelfAttention.o", None),
    ],
)
def test_loras_change_prompts(component: str, path: str, width: int | None, pipeline: Any) -> None:
    parts = components(pipeline)
    layer = low_rank(width) if width else LowRank(torch.ones(1, 32), torch.ones(64, 1), 1.0)
    names = ("text_encoder", "text_encoder_2", "text_encoder_3")
    encoder = TextEncoder(parts, cache_bytes=1 << 20, adapters=Adapters({name: getattr(parts, name) for name in names}))
    lora = Lora("style", {component: {path: layer}})
    plain = encoder.encode("a cat", text_length=77, truncate=False)
    styled = encoder.encode("a cat", text_length=77, truncate=False, loras=[ScaledLora(lora)])
    more = encoder.encode("a cat", text_length=77, truncate=False, loras=[ScaledLora(lora, 2.0)])
    again = encoder.encode("a cat", text_length=77, truncate=False, loras=[ScaledLora(lora)])
    assert not torch.equal(plain.text, styled.text)
    assert not torch.equal(more.text, styled.text)
    assert again is styled
    assert encoder.encode("a cat", text_length=77, truncate=False) is plain
    weights = dict(getattr(pipeline, component).named_modules())[path].weight
    addition = layer.scale * layer.up @ layer.down
    try:
        weights.data += addition
        text, pooled = expected(pipeline, "a cat", 77)
    finally:
        weights.data -= addition
    assert (styled.text - text).abs().max() < 1e-5
    assert (styled.pooled - pooled).abs().max() < 1e-5


def test_loras_of_the_transformer_alone_leave_prompts_as_they_are(pipeline: Any) -> None:
    parts = components(pipeline)
    encoder = TextEncoder(
        parts,
        cache_bytes=1 << 20,
        adapters=Adapters({"transformer": parts.transformer, "text_encoder": parts.text_encoder}),
    )
    lora = Lora("style", {"transformer": {"transformer_blocks.0.attn.to_q": low_rank(64)}})
    plain = encoder.encode("a cat", text_length=77, truncate=False)
    assert encoder.encode("a cat", text_length=77, truncate=False, loras=[ScaledLora(lora)]) is plain
