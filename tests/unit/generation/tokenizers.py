"""Tiny tokenizers of the kinds that models come with: byte-level BPE, unigram with and without byte fallback."""

from __future__ import annotations

import functools

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tests.unit.generation.conftest import TEXTS, make_tokenizer

KINDS = ("byte_level", "unigram", "byte_fallback")
WRITTEN = [*TEXTS, '{"name": "Ada", "age": 36, "tags": ["a", "b"], "ok": true, "no": null}', "0123456789 [-1.5e3]"] * 3


@functools.cache  # training does not number tokens the same way each time
def tokenizer_of(kind: str) -> PreTrainedTokenizerFast:
    if kind == "byte_level":
        tokenizer = make_tokenizer()
        tokenizer.add_tokens([AddedToken("old mill", special=False)])
        return tokenizer
    return unigram() if kind == "unigram" else byte_fallback()


def unigram() -> PreTrainedTokenizerFast:
    """As T5's: a leading space is part of words, and decoding drops the first."""
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.decoder = decoders.Metaspace(prepend_scheme="always")
    specials = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=240, special_tokens=specials, unk_token="<unk>", show_progress=False)
    backend.train_from_iterator(WRITTEN, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", pad_token="<pad>", unk_token="<unk>")


def byte_fallback() -> PreTrainedTokenizerFast:
    """As LLaMA 2's: pieces with a space, single bytes for what they do not cover."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    pieces += sorted({char for text in WRITTEN for char in text if char.isascii() and char != " "})
    pieces += ["th", "he", "the", "▁t", "▁the", "ca", "cat", "▁c", "▁ca", "▁cat", "at", "er", "in", "▁m", "il", "ill"]
    vocab = {piece: number for number, piece in enumerate(pieces)}
    merges = [
        ("t", "h"),
        ("h", "e"),
        ("▁", "t"),
        ("▁t", "he"),
        ("th", "e"),
        ("c", "a"),
        ("ca", "t"),
        ("▁", "c"),
        ("▁c", "a"),
    ]
    merges += [("▁ca", "t"), ("a", "t"), ("e", "r"), ("i", "n"), ("▁", "m"), ("i", "l"), ("il", "l")]
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    )
