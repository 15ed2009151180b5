"""Recognise, for messages, files whose content does not fit their name: downloads may save web pages or pointers instead."""

from contextlib import suppress

from ortho_core.storage.store import Store, one_line

#: Kinds of files by their first bytes, in lower case.
BEGINNINGS = {
    b"version https://git-lfs.github.com/spec/": "a git-lfs pointer, not the file itself: run `git lfs pull`",
    b"<!doctype html": "a web page, which a server may have sent instead of the file",
    b"<html": "a web page, which a server may have sent instead of the file",
    b"<?xml": "XML, which a server may have sent instead of the file",
    b"<svg": "SVG, which is not supported",
    b"%pdf": "a PDF",
    b"pk\x03\x04": "a ZIP archive: unpack it",
    b"\x1f\x8b": "compressed with gzip: unpack it",
    b"\xff\x0a": "JPEG XL: install pillow-jxl-plugin to read it",
    b"\0\0\0\x0cjxl ": "JPEG XL: install pillow-jxl-plugin to read it",
}
#: Kinds of files in ISO's media format, by brand.
BRANDS = {
    **dict.fromkeys((b"heic", b"heix", b"mif1", b"hevc", b"heim"), "HEIF: install pillow-heif to read it"),
    **dict.fromkeys((b"isom", b"mp42", b"mp41", b"qt  "), "a video"),
}
#: Number of first bytes that identify a file.
TELLING = 64


def instead(content: bytes) -> str | None:
    """The kind of a file, in words, by its first bytes; None if it is not known."""
    head = content[:TELLING].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    known = next((what for beginning, what in BEGINNINGS.items() if head.startswith(beginning)), None)
    return known or (BRANDS.get(head[8:12]) if head[4:8] == b"ftyp" else None)


def said_of(root: Store, file: str, error: Exception) -> str:
    """Why a file cannot be read: its real kind, if that is known, else the reader's message."""
    with suppress(OSError):
        if (kind := instead(root.read(file, 0, TELLING))) is not None:
            return f"it is {kind}"
    return one_line(error)
