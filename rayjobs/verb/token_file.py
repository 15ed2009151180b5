"""The file with Ray's token. Anyone who reads it can run any code on the cluster, so only its owner may read it."""

import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

#: Permissions of a file that only its owner can read and write.
OWNERS_ALONE = 0o600


def token_file() -> Path | None:
    """The file where Ray looks for its token; None if an environment variable contains the token."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return None
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    return Path(path) if path else Path(os.path.expanduser("~")) / ".ray" / "auth_token"


def keep_token_private(create: bool = False) -> None:
    """Let only the owner read the token's file. With `create`, make the file if it does not exist: Ray would make it readable
    for all users.

    A file of another user, or on a file system without permissions, is not changed.
    """
    file = token_file()
    if file is None:
        return
    with suppress(OSError):
        if create and not file.exists() and os.environ.get("RAY_AUTH_MODE", "token").lower() == "token":
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            aside = file.with_name(f".{file.name}.{os.getpid()}")
            try:
                with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, OWNERS_ALONE), "w") as stream:
                    stream.write(secrets.token_hex(32))
                os.link(aside, file)  # fails if another process has made the file in the meantime
            finally:
                aside.unlink(missing_ok=True)
        status = file.stat()
        # A secret that Kubernetes mounts belongs to the system and is not changed.
        if stat.S_ISREG(status.st_mode) and status.st_uid == os.getuid() and status.st_mode & 0o077:
            file.chmod(OWNERS_ALONE)
