"""Tokens as open_clip counts them, and captions that are names."""

import pytest

from ortho_core.pairs.survey.caption_texts import CLIP_WINDOW, clip_tokens, is_file_name


def test_tokens_are_counted_as_open_clip_counts_them():
    tokenizer = pytest.importorskip("open_clip.tokenizer").SimpleTokenizer(context_length=CLIP_WINDOW)
    count = clip_tokens()
    for text in (
        "a photo of a cat",
        "It's the artist's 1st oil-painting, isn't it?",
        "Ünïcode naïve 日本語 12345, 😀",
        "a_b  c\n d\t<tag> & 50%",
        "antidisestablishmentarianism" * 5,
        "a red and blue bird on a branch, " * 20,
    ):
        assert count(text) == len(tokenizer.encode(text)) + 2
    # What does not fit is cut off, and a text of exactly the window is not too long.
    assert count("cat " * 75) == CLIP_WINDOW


def test_without_the_vocabulary_nothing_is_counted(monkeypatch):
    monkeypatch.setattr("ortho_core.pairs.survey.caption_texts.CLIP_VOCABULARY", ("no_such_package", "x.gz"))
    assert clip_tokens() is None


def test_names_of_files_are_told_from_captions():
    for prompt, image in (
        ("IMG_2044", ""),
        ("DSC01234.JPG", ""),
        ("image (13)", ""),
        ("00042", ""),
        ("2f1b6d0a-93c5-4a58-9ce0-1d2e3f405162", ""),
        ("my_cat-3", "folder/my_cat-3.webp"),
    ):
        assert is_file_name(prompt, image), prompt
    for prompt, image in (
        ("a cat", "a cat.png"),
        ("cat", "cat.png"),
        ("7", "0007.png"),
        ("a photo of img_2044", ""),
        ("3 dogs, 2 cats", ""),
        ("facade", ""),
    ):
        assert not is_file_name(prompt, image), prompt
