"""The file with Ray's token, which lets whoever reads it run any code on the cluster: its owner alone can read it."""

import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

#: For the owner alone.
OWNERS_ALONE = 0o600


def token_file() -> Path | None:
    """Where Ray looks for its token; None where a variable holds the token itself."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return None
    given = os.environ.get("RAY_AUTH_TOKEN_PATH")
    return Path(given) if given else Path(os.path.expanduser("~")) / ".ray" / "auth_token"


def keep_token_private(create: bool = False) -> None:
    """Take the token's file away from all but its owner; with `create` make one where Ray would, for all to read.

    A file of somebody else, or on a file system without permissions, is left as it is.
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
                os.link(aside, file)  # unless another has made one by now
            finally:
                aside.unlink(missing_ok=True)
        status = file.stat()
        # A secret that Kubernetes mounts belongs to the system, and is changed by nobody here.
        if stat.S_ISREG(status.st_mode) and status.st_uid == os.getuid() and status.st_mode & 0o077:
            file.chmod(OWNERS_ALONE)
