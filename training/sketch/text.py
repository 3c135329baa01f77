"""How limner-sketch reads captions: a tokenizer of its own and two small CLIP text encoders of one layer, as SD3 takes
them (Esser et al., "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis", 2024), without T5.

SD3 reads the hidden states before the last layer. With one layer these are the embeddings themselves, and positions
from `POSITIONS` on are zero: all padding there is the same token, n times. Each of T5's tokens is zero, too. The
transformer's text has no positions, so n equal tokens stay equal in every layer and act like one whose attention scores
are log(n) higher. Training uses that: 18 tokens instead of 77 and T5's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, PreTrainedTokenizerFast

CLIP_LENGTH = 77
POSITIONS = 16
"""Tokens of a caption that have a position, with the two that mark its ends."""
LONGEST = 256
"""Tokens of T5 at most: how many there are is learned, too, though they say nothing."""
WIDTH = 128  # of one encoder
VOCABULARY = 3072

BEGIN, END, PADDING = "<|startoftext|>", "<|endoftext|>", "<|padding|>"


def tokenizer_of(captions: Iterable[str], size: int = VOCABULARY) -> PreTrainedTokenizerFast:
    """Learn byte pairs from captions (Sennrich et al., 2016). Everything is lower case; unknown words fall apart."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[BEGIN, PADDING, "<|unknown|>", END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    ends = [(mark, tokenizer.token_to_id(mark)) for mark in (BEGIN, END)]
    tokenizer.post_processor = TemplateProcessing(single=f"{BEGIN} $A {END}", special_tokens=ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=CLIP_LENGTH,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PADDING,
        unk_token="<|unknown|>",
    )


def encoder(tokenizer: PreTrainedTokenizerFast, width: int = WIDTH) -> CLIPTextModelWithProjection:
    """Build a text encoder with random weights. What is the same in all captions, the marks, begins at zero, and words
    begin large: otherwise captions differ by little from each other, and are hardly learned from for a long time."""
    network = CLIPTextModelWithProjection(
        CLIPTextConfig(
            hidden_size=width,
            intermediate_size=4 * width,
            projection_dim=width,
            num_attention_heads=max(1, width // 64),
            num_hidden_layers=1,
            vocab_size=len(tokenizer),
            max_position_embeddings=CLIP_LENGTH,
            hidden_act="gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    embeddings = network.text_model.embeddings
    torch.nn.init.normal_(embeddings.token_embedding.weight, std=1.0)
    torch.nn.init.normal_(embeddings.position_embedding.weight, std=0.1)
    with torch.no_grad():
        embeddings.token_embedding.weight[tokenizer.all_special_ids] = 0
        embeddings.position_embedding.weight[POSITIONS:] = 0
    return network


def tokens(tokenizer: PreTrainedTokenizerFast, captions: Sequence[str]) -> Tensor:
    """Return the tokens of captions, (n, POSITIONS) int64. Longer ones are cut, and end with the mark all the same."""
    given = list(captions)
    read = tokenizer(given, padding="max_length", max_length=POSITIONS, truncation=True, return_tensors="pt")
    return torch.as_tensor(read.input_ids)


def read(encoders: Sequence[Any], ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return what the transformer reads of captions: text (n, POSITIONS + 2, width) and pooled (n, width), where width
    is that of all encoders together. The last but one token stands for all padding, the last one for T5's."""
    texts, pooled = [], []
    for each in encoders:
        embeddings = each.text_model.embeddings
        padding = embeddings.token_embedding.weight[each.config.pad_token_id].expand(len(ids), 1, -1)
        texts.append(torch.cat([embeddings(ids), padding], dim=1))
        pooled.append(each(ids).text_embeds)  # causal: what follows the end doesn't matter
    text = torch.cat(texts, dim=2)
    return torch.cat([text, torch.zeros_like(text[:, :1])], dim=1), torch.cat(pooled, dim=1)


def counts(text_length: int) -> Tensor:
    """Return how often each token of `read` stands in a prompt with `text_length` tokens of T5, (POSITIONS + 2,)."""
    return torch.tensor([1.0] * POSITIONS + [CLIP_LENGTH - POSITIONS, text_length])
