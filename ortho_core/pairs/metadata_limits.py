"""Strip the metadata of an image file, if it is broken or larger than Pillow reads."""

import struct
from dataclasses import dataclass

PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
#: Non-critical chunks that affect the pixels: transparency, the frames of an animation, the orientation.
PNG_KEPT = {b"tRNS", b"acTL", b"fcTL", b"fdAT", b"eXIf"}
#: Segments that are kept: JFIF's, and Adobe's, which describes how colours are stored.
JPEG_KEPT = {0xE0, 0xEE}
#: Blocks that a TIFF file points to: XMP, Photoshop, ICC, EXIF, GPS, interoperability.
TIFF_METADATA = {700, 33723, 34377, 34675, 34665, 34853, 40965}
#: A tag without meaning, from the private range.
TIFF_UNUSED = 65_000


@dataclass(frozen=True)
class Bare:
    """A file without metadata, and its EXIF block if that was removed."""

    content: bytes
    exif: bytes | None = None


def without_metadata(content: bytes) -> Bare | None:
    """The same picture without texts, profiles and the like; None if it has none, or if its format needs no stripping."""
    bare: Bare | None = None
    if content.startswith(PNG):
        bare = Bare(_bare_png(content))
    elif content.startswith(JPEG):
        bare = _bare_jpeg(content)
    elif content[:4] in (b"II*\0", b"MM\0*"):
        bare = Bare(_bare_tiff(content))
    return None if bare is None or bare.content == content else bare


def _bare_png(content: bytes) -> bytes:
    kept, at = [PNG], len(PNG)
    while at + 12 <= len(content):
        (length,) = struct.unpack_from(">I", content, at)
        kind = content[at + 4 : at + 8]
        if kind[:1].isupper() or kind in PNG_KEPT:
            kept.append(content[at : at + 12 + length])
        at += 12 + length
    return b"".join([*kept, content[at:]])


def _bare_jpeg(content: bytes) -> Bare:
    """Drops segments before the first scan. A segment is 0xFF, a marker, and a length that includes its own two bytes.

    Bytes between two segments, left by a wrong length, are dropped too.
    """
    kept, at, exif = [content[:2]], 2, None
    while (at := content.find(b"\xff", at)) >= 0 and at + 4 <= len(content) and content[at + 1] != 0xDA:
        if content[at + 1] in (0x00, 0xFF):  # not a marker
            at += 1
            continue
        (length,) = struct.unpack_from(">H", content, at + 2)
        marker, segment = content[at + 1], content[at : at + 2 + length]
        if marker == 0xE1 and segment[4:10] == b"Exif\0\0":
            exif = segment[4:]
        if not 0xE0 <= marker <= 0xEF or marker in JPEG_KEPT:
            kept.append(segment)
        at += 2 + length
    return Bare(b"".join([*kept, content[at:] if at >= 0 else b""]), exif)


def _bare_tiff(content: bytes) -> bytes:
    """Replaces the tags of the first page's metadata entries by an unused one; all offsets stay the same."""
    order = "<" if content[:2] == b"II" else ">"
    bare = bytearray(content)
    try:
        (start,) = struct.unpack_from(f"{order}I", content, 4)
        (entries,) = struct.unpack_from(f"{order}H", content, start)
        for at in range(start + 2, start + 2 + 12 * entries, 12):
            (tag,) = struct.unpack_from(f"{order}H", content, at)
            if tag in TIFF_METADATA:
                struct.pack_into(f"{order}H", bare, at, TIFF_UNUSED)
    except struct.error:
        return content
    return bytes(bare)
