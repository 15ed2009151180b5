"""The hub's protocol, through huggingface_hub: list a repository's files at a revision; download them, resumed and verified.

huggingface_hub's own download starts again from zero after a process was killed. Here the part of a file that has arrived is
kept, under a name with the hash of its ETag, and only the rest is requested.
"""

import errno
import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

import httpx2
from huggingface_hub import HfApi, constants, get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import (
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

from ortho_core.errors import UserError
from ortho_core.storage.store import one_line

#: Suffix of a file that is not complete yet.
INCOMPLETE = ".incomplete"
SHA256, GIT = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{40}")


class ByteCounter(Protocol):
    """What huggingface_hub accepts in place of the class tqdm."""

    def __call__(self, **about: object) -> object: ...


@dataclass(frozen=True)
class Published:
    """The hub's figures of a file: its bytes, and the SHA-256 of a large file or the git object's name of a small one."""

    size: int | None
    sha256: str | None
    git: str | None


@dataclass(frozen=True)
class Revision:
    commit: str
    files: dict[str, Published]


@dataclass(frozen=True)
class Hub:
    """One server with the hub's API. The token, if there is one, is sent to this host and to no other."""

    endpoint: str
    token: str | None = None

    @staticmethod
    def of(mirror: str | None) -> "Hub":
        """The mirror, or else the hub that HF_ENDPOINT or huggingface_hub names, with the environment's HF_TOKEN."""
        return Hub((mirror or constants.ENDPOINT).rstrip("/"), os.environ.get("HF_TOKEN", "").strip() or None)

    def look_up(self, repository: str, revision: str) -> Revision:
        """The commit of a revision, and its files. Raises UserError."""
        with self._one_line_errors(repository, f"revision {revision}"):
            api = HfApi(endpoint=self.endpoint, token=self.token or False)
            info = api.model_info(repository, revision=revision, files_metadata=True)
        if not info.sha or not GIT.fullmatch(info.sha):
            raise UserError(f"{self.endpoint} names no commit for {repository} at {revision}; is it a hub?")
        files = {
            file.rfilename: Published(
                file.size, file.lfs.sha256 if file.lfs else None, None if file.lfs else file.blob_id
            )
            for file in info.siblings or []
        }
        return Revision(info.sha, files)

    def fetch(
        self,
        repository: str,
        commit: str,
        path: str,
        published: Published,
        pinned: str | None,
        to: Path,
        meter: ByteCounter,
    ) -> str:
        """Download the file to `to` and compare its size and checksums; returns its SHA-256.

        The part that an earlier call left is not requested again. Raises UserError; a file with a wrong size or checksum is
        removed first.
        """
        url = hf_hub_url(repository, path, revision=commit, endpoint=self.endpoint)
        with self._one_line_errors(repository, path):
            metadata = get_hf_file_metadata(url, token=self.token or False, endpoint=self.endpoint)
        if metadata.etag is None or metadata.commit_hash != commit:
            raise UserError(f"{url} is of commit {metadata.commit_hash}, not {commit}; is {self.endpoint} a hub?")
        size = metadata.size if published.size is None else published.size
        sha256 = published.sha256 or (metadata.etag if SHA256.fullmatch(metadata.etag) else None)
        git = published.git or (metadata.etag if GIT.fullmatch(metadata.etag) else None)
        tag = hashlib.sha256(metadata.etag.encode()).hexdigest()[:16]
        partial = to.with_name(f"{to.name}.{tag}{INCOMPLETE}")
        headers = build_hf_headers(token=self.token or False)
        if httpx2.URL(metadata.location).netloc != httpx2.URL(url).netloc:
            headers.pop("authorization", None)  # a signed URL of a storage provider, which must not get the token
        with self._one_line_errors(repository, path):
            partial.parent.mkdir(parents=True, exist_ok=True)
            # Unbuffered, so that a killed process leaves on the disk all bytes that have arrived.
            with open(partial, "r+b" if partial.exists() else "w+b", buffering=0) as stream:
                had = stream.seek(0, os.SEEK_END)
                if size is not None and had > size:
                    had = stream.truncate(stream.seek(0))
                http_get(
                    metadata.location,
                    cast(BinaryIO, stream),
                    resume_size=had,
                    headers=headers,
                    expected_size=size,
                    tqdm_class=cast(Any, meter),
                )
        digest = self._verify(partial, f"{repository}/{path}", size, (sha256, pinned), git)
        partial.replace(to)
        return digest

    def _verify(self, file: Path, name: str, size: int | None, sha256: tuple[str | None, ...], git: str | None) -> str:
        digest, blob = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % file.stat().st_size, usedforsecurity=False)
        with open(file, "rb") as stream:
            while chunk := stream.read(1 << 24):
                digest.update(chunk)
                blob.update(chunk)
        compared = [("SHA-256", digest.hexdigest(), expected) for expected in sha256]
        compared += [
            ("git object", blob.hexdigest(), git),
            ("size", str(file.stat().st_size), None if size is None else str(size)),
        ]
        for what, got, expected in compared:
            if expected is not None and got != expected:
                file.unlink()
                raise UserError(
                    f"{name} from {self.endpoint} has {what} {got}, not {expected}: it is damaged or another file; it was "
                    "removed, and the same command downloads it again"
                )
        return digest.hexdigest()

    @contextmanager
    def _one_line_errors(self, repository: str, what: str) -> Iterator[None]:
        """Inside, errors of the libraries and the system become a UserError of one line. No message contains the token."""
        try:
            yield
        except GatedRepoError as error:
            raise UserError(
                f"{repository} is gated: accept its terms at {self.endpoint}/{repository}, then set HF_TOKEN to a token of "
                f"that account{' (the present one is refused)' if self.token else ''}"
            ) from error
        except RevisionNotFoundError as error:
            raise UserError(f"{repository} at {self.endpoint} has no {what}") from error
        except RemoteEntryNotFoundError as error:
            raise UserError(f"{repository} at {self.endpoint} has no file {what}") from error
        except RepositoryNotFoundError as error:
            raise UserError(
                f"{self.endpoint} has no repository {repository}, or it is private and needs an HF_TOKEN with access"
            ) from error
        except OfflineModeIsEnabled as error:
            raise UserError(
                "HF_HUB_OFFLINE is set, so nothing is downloaded; --offline lists the files to copy by hand"
            ) from error
        except HfHubHTTPError as error:
            status = error.response.status_code
            raise UserError(
                f"{self.endpoint} answers {status} for {what} of {repository}; try later, or --mirror"
            ) from error
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise UserError(
                f"{self.endpoint} cannot be reached for {what} of {repository} ({one_line(error) or type(error).__name__}); what "
                "has arrived is kept; --mirror URL uses another server, --offline lists the files to copy by hand"
            ) from error
        except FileMetadataError as error:
            raise UserError(f"{self.endpoint} does not answer as a hub does: {one_line(error)}") from error
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise UserError(
                    f"the disk is full: {what} of {repository} is not complete; what has arrived is kept"
                ) from error
            raise UserError(f"{what} of {repository}: {one_line(error)}; the same command goes on from here") from error
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.endpoint} does not answer as a hub does: {one_line(error)}") from error
