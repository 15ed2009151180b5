"""Statistics of captions: the number of CLIP tokens, and captions that look like file names."""

import gzip
import importlib.util
import itertools
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from ortho_core.pairs.images import SUFFIXES

#: Number of tokens that CLIP's text encoders read, including the start and end tokens.
CLIP_WINDOW = 77
#: The package and file with CLIP's merges, and the number of merges that CLIP uses.
CLIP_VOCABULARY, MERGES = ("open_clip", "bpe_simple_vocab_16e6.txt.gz"), 49_152 - 256 - 2
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
#: File names that cameras, phones and programs make: `IMG_2044`, `DSC01234`, `image (3)`, `0001`, `photo-12`, `a3f09c...`.
FILE_NAME = re.compile(
    r"(?:img|dsc|dscn|dscf|pxl|mvi|p|image|photo|picture|pic|screenshot|untitled|frame|file)?[-_ ]*\(?\d{2,}(?:[-_]\d+)*\)?"
    r"|[0-9a-f]{8}(?:-?[0-9a-f]{4}){2,}(?:-?[0-9a-f]+)*",
    re.IGNORECASE,
)


def clip_tokens() -> Callable[[str], int] | None:
    """A function that counts the tokens of a text like CLIP's tokenizer, start and end included. None if open_clip, which has the
    vocabulary, is not installed.
    """
    package, file = CLIP_VOCABULARY
    spec = importlib.util.find_spec(package)  # imports nothing: the package itself takes seconds
    places = (spec.submodule_search_locations or []) if spec else []
    vocabulary = next((path for place in places if (path := Path(place) / file).is_file()), None)
    if vocabulary is None:
        return None
    with gzip.open(vocabulary, "rt", encoding="utf-8") as lines:
        merges = [(left, right) for left, right in map(str.split, itertools.islice(lines, 1, 1 + MERGES))]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(letter + "</w>" for letter in letters), *(left + right for left, right in merges)]
    # The token ids are not CLIP's, because tokens are only counted.
    numbers = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = Tokenizer(models.BPE(vocab=numbers, merges=merges, end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    words = pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(False, use_regex=False)])
    return lambda text: len(tokenizer.encode(text).tokens) + 2


def is_file_name(prompt: str, image: str = "") -> bool:
    """Whether a caption looks like a file name, or is the name of its image."""
    text = prompt.strip()
    path = PurePosixPath(image.replace("\\", "/"))
    if PurePosixPath(text).suffix.lower() in SUFFIXES and " " not in text:
        return True
    return bool(FILE_NAME.fullmatch(text)) or (
        text in (path.stem, path.name) and any(c.isdigit() or c in "_-" for c in text)
    )
