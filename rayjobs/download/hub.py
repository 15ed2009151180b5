"""The hub's protocol, through huggingface_hub: what a repository has at a revision, and its files, resumed and verified.

huggingface_hub's own downloads begin anew after a process was killed; here a file's beginning is kept, under a name that
says of which content it is, and asked for no second time.
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

#: Ends the name of a file whose end is still to come.
INCOMPLETE = ".incomplete"
SHA256, GIT = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{40}")


class ByteCounter(Protocol):
    """What huggingface_hub takes in place of tqdm."""

    def __call__(self, **about: object) -> object: ...


@dataclass(frozen=True)
class Published:
    """What the hub says of a file: bytes, and the SHA-256 of a large one or the git object's name of a small one."""

    size: int | None
    sha256: str | None
    git: str | None


@dataclass(frozen=True)
class Revision:
    commit: str
    files: dict[str, Published]


@dataclass(frozen=True)
class Hub:
    """One server that speaks the hub's protocol. The token, if there is one, goes to it and to no other host."""

    endpoint: str
    token: str | None = None

    @staticmethod
    def of(mirror: str | None) -> "Hub":
        """The mirror, or else the hub that HF_ENDPOINT or huggingface_hub names, with the environment's HF_TOKEN."""
        return Hub((mirror or constants.ENDPOINT).rstrip("/"), os.environ.get("HF_TOKEN", "").strip() or None)

    def look_up(self, repository: str, revision: str) -> Revision:
        """The commit that a revision is, and its files. Raises UserError."""
        with self._told(repository, f"revision {revision}"):
            api = HfApi(endpoint=self.endpoint, token=self.token or False)
            info = api.model_info(repository, revision=revision, files_metadata=True)
        if not info.sha or not GIT.fullmatch(info.sha):
            raise UserError(f"{self.endpoint} does not say which commit {repository} has at {revision}; is it a hub?")
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
        """Have the file at `to`, its size and checksums compared; returns its SHA-256.

        What an earlier call left of it is not asked for again. Raises UserError; a file that is not what it should be is
        removed before.
        """
        url = hf_hub_url(repository, path, revision=commit, endpoint=self.endpoint)
        with self._told(repository, path):
            found = get_hf_file_metadata(url, token=self.token or False, endpoint=self.endpoint)
        if found.etag is None or found.commit_hash != commit:
            raise UserError(f"{url} is of commit {found.commit_hash}, not {commit}; is {self.endpoint} a hub?")
        size = found.size if published.size is None else published.size
        sha256 = published.sha256 or (found.etag if SHA256.fullmatch(found.etag) else None)
        git = published.git or (found.etag if GIT.fullmatch(found.etag) else None)
        tag = hashlib.sha256(found.etag.encode()).hexdigest()[:16]
        partial = to.with_name(f"{to.name}.{tag}{INCOMPLETE}")
        headers = build_hf_headers(token=self.token or False)
        if httpx2.URL(found.location).netloc != httpx2.URL(url).netloc:
            headers.pop("authorization", None)  # a signed address of a storage provider, who is not to see the token
        with self._told(repository, path):
            partial.parent.mkdir(parents=True, exist_ok=True)
            # Unbuffered: what has arrived is on the disk, whenever the process is killed.
            with open(partial, "r+b" if partial.exists() else "w+b", buffering=0) as stream:
                had = stream.seek(0, os.SEEK_END)
                if size is not None and had > size:
                    had = stream.truncate(stream.seek(0))
                http_get(
                    found.location,
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
                    f"{name} from {self.endpoint} has {what} {got}, not {expected}: it is damaged or another file; removed, "
                    "the same command fetches it again"
                )
        return digest.hexdigest()

    @contextmanager
    def _told(self, repository: str, what: str) -> Iterator[None]:
        """Errors of the libraries and the system, in one line. No message holds the token."""
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
                f"{self.endpoint} has no repository {repository}, or shows it only to those whose HF_TOKEN it accepts"
            ) from error
        except OfflineModeIsEnabled as error:
            raise UserError(
                "HF_HUB_OFFLINE is set: nothing may be fetched; --offline says what to bring by hand"
            ) from error
        except HfHubHTTPError as error:
            status = error.response.status_code
            raise UserError(
                f"{self.endpoint} answers {status} for {what} of {repository}; try later, or --mirror"
            ) from error
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise UserError(
                f"{self.endpoint} cannot be reached for {what} of {repository} ({one_line(error) or type(error).__name__}); what "
                "has arrived is kept; --mirror URL asks another server, --offline says what to bring by hand"
            ) from error
        except FileMetadataError as error:
            raise UserError(f"{self.endpoint} does not answer as a hub does: {one_line(error)}") from error
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise UserError(
                    f"the disk is full: {what} of {repository} is not whole; what has arrived is kept"
                ) from error
            raise UserError(f"{what} of {repository}: {one_line(error)}; the same command goes on from here") from error
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.endpoint} does not answer as a hub does: {one_line(error)}") from error
