"""Fingerprints over names and hashes of files."""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any


def fingerprint_over(hashes: dict[str, str], base: str | None = None, added: Iterable[str] = ()) -> str:
    """SHA-256 (16 hex digits) over names and hashes; for an adapter also over the fingerprint of its base, and with LoRAs over
    their fingerprints (`added`).
    """
    digest = hashlib.sha256()
    if base is not None:
        digest.update(f"base_fingerprint\0{base}\0".encode())
    return digest_over(hashes | numbered(added), digest)[:16]


def numbered(added: Iterable[str]) -> dict[str, str]:
    """Added LoRAs' fingerprints by names that no file has."""
    return {f"lora {number}": fingerprint for number, fingerprint in enumerate(added)}


def digest_over(hashes: Mapping[str, str], digest: Any) -> str:
    """Update `digest` with names and hashes; returns its hex digits."""
    for name, value in sorted(hashes.items()):
        digest.update(f"{name}\0{value}\0".encode())
    return str(digest.hexdigest())
