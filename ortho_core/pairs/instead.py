"""What a file holds that is not what its name says, for messages: downloads leave pages and pointers in the place of files."""

from contextlib import suppress

from ortho_core.storage.store import Store, one_line

#: By how a file begins, in lower case.
BEGINNINGS = {
    b"version https://git-lfs.github.com/spec/": "the pointer that git-lfs puts in a file's place: run `git lfs pull`",
    b"<!doctype html": "a web page, such as a server sends in a file's place",
    b"<html": "a web page, such as a server sends in a file's place",
    b"<?xml": "XML, such as a server sends in a file's place",
    b"<svg": "SVG, which nothing here draws",
    b"%pdf": "a PDF",
    b"pk\x03\x04": "a ZIP archive: unpack it",
    b"\x1f\x8b": "compressed with gzip: unpack it",
    b"\xff\x0a": "JPEG XL, which pillow-jxl-plugin reads where it is installed",
    b"\0\0\0\x0cjxl ": "JPEG XL, which pillow-jxl-plugin reads where it is installed",
}
#: By the brand of a file of ISO's media format.
BRANDS = {
    **dict.fromkeys(
        (b"heic", b"heix", b"mif1", b"hevc", b"heim"), "HEIF, which pillow-heif reads where it is installed"
    ),
    **dict.fromkeys((b"isom", b"mp42", b"mp41", b"qt  "), "a film"),
}
#: Bytes of a file that tell.
TELLING = 64


def instead(content: bytes) -> str | None:
    """What the file is, by its first bytes; None if that is not known."""
    head = content[:TELLING].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    known = next((what for beginning, what in BEGINNINGS.items() if head.startswith(beginning)), None)
    return known or (BRANDS.get(head[8:12]) if head[4:8] == b"ftyp" else None)


def said_of(root: Store, file: str, error: Exception) -> str:
    """Why a file cannot be read: what it is, where that is known, else what its reader says."""
    with suppress(OSError):
        if (what := instead(root.read(file, 0, TELLING))) is not None:
            return f"it is {what}"
    return one_line(error)
