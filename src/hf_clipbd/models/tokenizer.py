# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""A CLIP tokenizer trained on any captions, and the processor that joins it with an image geometry."""

import json
from collections.abc import Iterable, Sequence

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPImageProcessorPil, CLIPProcessor, CLIPTokenizer
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD


START, END, WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_SMALLEST = 2 * 256 + 2


def train_tokenizer(texts: Iterable[str], vocab_size: int, model_max_length: int = 32) -> CLIPTokenizer:
    """Return CLIP's lower-cased byte-level BPE tokenizer, with merges learned from `texts`.

    The vocabulary is laid out as OpenAI's: 256 bytes, the same as word ends, the merges, start and end of text. Every
    byte is in it, so that any text in any script has tokens and none is unknown. The same texts in the same order
    give the same tokenizer.

    Args:
        texts: Captions.
        vocab_size: Largest size of the vocabulary, at least 514; texts with few different words fill less.
        model_max_length: Tokens a text is cut to when truncated, start and end included.

    Returns:
        Tokenizer that pads with the end-of-text token; its ids are below `len(tokenizer)`.

    Raises:
        ValueError: If `vocab_size` cannot hold the bytes, or `model_max_length` has no room for a word.

    Reference:
        Radford et al. 2021, section 2.4 (lower-cased byte pair encoding of Sennrich et al. 2016).

    Example:
        >>> tokenizer = train_tokenizer(["a red banana", "a banana"], vocab_size=600)
        >>> tokenizer.tokenize("A banana!")
        ['a</w>', 'banana</w>', '!</w>']
    """
    if vocab_size < _SMALLEST:
        raise ValueError(f"Expected `vocab_size` of at least {_SMALLEST} (two tokens a byte), but got {vocab_size}.")
    if model_max_length < 3:
        raise ValueError(f"Expected `model_max_length` of at least 3, but got {model_max_length}.")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate(alphabet + [letter + WORD_END for letter in alphabet])}
    merges = []
    for left, right in _learn_merges(texts, alphabet, vocab_size):
        if len(vocab) >= vocab_size - 2:
            break
        merges.append((left, right))
        vocab.setdefault(left + right, len(vocab))
    for token in (START, END):
        vocab[token] = len(vocab)
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=model_max_length)


def _learn_merges(texts: Iterable[str], alphabet: list[str], vocab_size: int) -> list[tuple[str, str]]:
    """Return BPE merges in the order they were learned, at least as many as fit where the texts have them."""
    bpe = Tokenizer(models.BPE(end_of_word_suffix=WORD_END))
    bpe.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=alphabet,
        special_tokens=[letter + WORD_END for letter in alphabet],  # fixes their ids, and so the order of ties
        end_of_word_suffix=WORD_END,
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return [tuple(merge) for merge in json.loads(bpe.to_str())["model"]["merges"]]


def build_processor(
    tokenizer: CLIPTokenizer,
    size: int,
    mean: Sequence[float] = OPENAI_CLIP_MEAN,
    std: Sequence[float] = OPENAI_CLIP_STD,
) -> CLIPProcessor:
    """Return a processor that resizes the shorter edge to `size`, crops the centre and normalises, with PIL.

    Args:
        tokenizer: Tokenizer of the text tower.
        size: Height and width of the images in pixels.
        mean: Mean of each colour channel, of pixels in [0, 1].
        std: Standard deviation of each colour channel, of pixels in [0, 1].
    """
    image_processor = CLIPImageProcessorPil(
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
        image_mean=list(mean),
        image_std=list(std),
    )
    return CLIPProcessor(image_processor, tokenizer)
