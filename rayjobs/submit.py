"""`ortho submit VERB ...`: run a verb on a running cluster through Ray's job API, and follow it as if it ran here."""

import asyncio
import logging
import os
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict

from ortho_core.errors import UserError
from ortho_core.marks import conduct, decides
from ortho_core.storage.aside import scratch_folder
from ortho_core.storage.store import one_line
from ortho_core.text.plain_text import printable
from rayjobs.verb.console import say
from rayjobs.verb.help import flag_of
from rayjobs.verb.interrupts import as_told, taken
from rayjobs.verb.options import Rest, config_file, parse
from rayjobs.verb.paths import relative_paths
from rayjobs.verb.resources import labels
from rayjobs.verb.table import VERBS
from rayjobs.verb.token_file import keep_token_private

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

# Read when ray is imported: who has a token at hand means to show it, and Ray by itself sends none.
if {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
    os.environ.setdefault("RAY_AUTH_MODE", "token")

#: What is uploaded: the code of this checkout. Whatever else a job reads lies where the nodes see it.
PACKAGES = ("ortho_core", "rayjobs")

#: A file named on the command line that is larger than this belongs on the cluster's storage.
MAX_FILE_BYTES = 1 << 20

#: How long the cluster may be out of reach before the job is left to itself.
PATIENCE_S = 120

#: What a job that is stopped gets to end in order, before Ray kills it; Ray's own 3 s are less than its shutdown takes.
STOP_WAIT_S = 20

INTERRUPTED = 130


def _names(given: object) -> object:
    """`NAME,NAME` as a tuple."""
    return tuple(name.strip() for name in given.split(",") if name.strip()) if isinstance(given, str) else given


class SubmitJob(BaseModel):
    """Run a verb on a running cluster: `ortho submit --address http://HEAD:8265 assign --pairs ... --out ...`.

    The verb's log is streamed, its exit code returned. Ctrl-C asks whether to stop the job. Paths in the verb's options
    are the cluster's: absolute, or URLs; small files named by relative paths, and --config, are sent along.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    address: str | None = conduct(
        None, description="the cluster's dashboard, http://HEAD:8265 (none: RAY_API_SERVER_ADDRESS, or RAY_ADDRESS)"
    )
    submission_id: str | None = conduct(None, pattern=r"^[\w.-]+$", description="name of the job (none: Ray makes one)")
    env: Annotated[tuple[str, ...], BeforeValidator(_names)] = decides(
        (), description="environment variables, NAME,NAME, that the job gets with the values they have here"
    )
    metadata: Annotated[dict[str, str] | None, BeforeValidator(labels)] = conduct(
        None, description="NAME=VALUE,NAME=VALUE, shown with the job in Ray's dashboard"
    )
    no_upload: bool = conduct(False, description="send no code and no files: the nodes have this package installed")
    detach: bool = conduct(False, description="do not wait for the job: say how to follow it, and leave")
    command: Annotated[tuple[str, ...], Rest()] = decides(min_length=1, description="the verb and its options")


def check(job: SubmitJob) -> dict[str, Path]:
    """The files to send along, by their names in the job's folder.

    Raises UserError for whatever can be found wrong from here; with --no-upload, a --config is the cluster's to read.
    """
    verb, options = job.command[0], list(job.command[1:])
    if verb not in VERBS or verb == "submit":
        raise UserError(f"unknown verb {verb!r}; accepted: {', '.join(name for name in VERBS if name != 'submit')}")
    if missing := [name for name in job.env if name not in os.environ]:
        raise UserError(f"--env: {', '.join(missing)} is not set here")
    place = config_place(options)
    if job.no_upload and place is not None:
        return {}
    own = [flag_of(name) for name in SubmitJob.model_fields if name != "command"]
    if late := [each for each in options if each.partition("=")[0].replace("_", "-") in own]:
        raise UserError(f"{late[0].partition('=')[0]} is an option of submit: give it before {verb}")
    parsed = parse(VERBS[verb].model(), options, verb, expand=None)
    if parsed.local:
        raise UserError("--local: the verb is to run on the cluster that it is handed to; leave it out")
    files = {} if place is None else {"job.yaml": config_file(config_in(options[place]))}
    for option, path in relative_paths(parsed.job):
        # Of a pair set or a model, one file alone is of no use.
        alone = option.rpartition(".")[2].lstrip("-") in {"pairs", "heldout", "model"}
        if job.no_upload or alone or not path.is_file() or ".." in path.parts or path.parts[0] in PACKAGES:
            raise UserError(
                f"{option} {path}: a relative path would lie in a folder that the cluster throws away; accepted: an "
                "absolute path or URL on storage that every node sees, or a small file under this folder to send along"
            )
        if files.setdefault(path.as_posix(), path) != path:
            raise UserError(f"{option} {path}: the configuration is sent along under this name; give the file another")
    for name, path in files.items():
        if (size := path.stat().st_size) > MAX_FILE_BYTES:
            raise UserError(f"{name} has {size} bytes, too many to send along; put it on storage that every node sees")
    return files


def config_place(options: list[str]) -> int | None:
    """Which of `options` holds the name of the configuration file."""
    for i, option in enumerate(options):
        if option == "--config" and i + 1 < len(options):
            return i + 1
        if option.startswith("--config="):
            return i
    return None


def config_in(option: str) -> str:
    return option.removeprefix("--config=")


def entrypoint(job: SubmitJob) -> str:
    """The shell command that the cluster runs."""
    options = list(job.command[1:])
    if not job.no_upload and (place := config_place(options)) is not None:
        options[place] = options[place].removesuffix(config_in(options[place])) + "job.yaml"
    return shlex.join(["python", "-m", "rayjobs", job.command[0], *options])


def pack(files: dict[str, Path], folder: Path) -> None:
    """Lay out what is sent: the two packages and `files`."""
    source = Path(__file__).resolve().parents[1]
    for package in PACKAGES:
        shutil.copytree(source / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name, path in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / name)


def describe(job: SubmitJob) -> dict[str, object]:
    """What a dry run prints: everything that would be sent, but of the environment only names."""
    files = check(job)
    sent = []
    if not job.no_upload:
        with scratch_folder("ortho-submit") as folder:
            pack(files, folder)
            sent = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return {
        "address": job.address,
        "entrypoint": entrypoint(job),
        "files_sent": len(sent),
        "bytes_sent": sum(sent),
        "own_files": sorted(files),
        "env": list(job.env),
        "metadata": job.metadata or {},
    }


def run(job: SubmitJob) -> int:
    """Submit, follow, return the verb's exit code (130 where it was stopped). Raises UserError."""
    files = check(job)
    client = connect(job.address)
    name = submit(client, job, files)
    follow_by = f"ray job logs --follow --address {client.get_address()} {name}"
    say(f"submit: job {name} at {client.get_address()}")
    if job.detach:
        say(f"submit: follow it with `{follow_by}`")
        return 0
    try:
        return outcome(follow(client, name, follow_by), name)
    except KeyboardInterrupt as error:
        code = as_told(error).code
        taken()
        if not stop_wanted(name):
            say(f"submit: the job goes on; follow it with `{follow_by}`, stop it with `ray job stop {name}`")
            return code
    client.stop_job(name)
    say(f"submit: stopping {name}; the same command again goes on from there")
    while not client.get_job_status(name).is_terminal():
        time.sleep(0.5)
    return code


def connect(address: str | None) -> "JobSubmissionClient":
    """Ray's client of the job API. Raises UserError where no cluster answers, or it asks for a token."""
    keep_token_private()
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    for name in ("ray", "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if address is not None:
        # Ray lets this variable win over the argument.
        os.environ["RAY_API_SERVER_ADDRESS"] = address if "://" in address else f"http://{address}"
    shown = os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS") or "this machine"
    try:
        return JobSubmissionClient()
    except AuthenticationError as error:
        raise UserError(
            f"the cluster at {shown} accepts jobs with its token only; export RAY_AUTH_MODE=token and "
            "RAY_AUTH_TOKEN_PATH, a file with the token (or RAY_AUTH_TOKEN)"
        ) from error
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"no cluster answers at {shown}: {one_line(error)}") from error


def submit(client: "JobSubmissionClient", job: SubmitJob, files: dict[str, Path]) -> str:
    """Hand the job in; returns its name. Raises UserError."""
    values = {name: os.environ[name] for name in job.env}
    runtime: dict[str, object] = {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S), **values}}
    with scratch_folder("ortho-submit") as folder:
        if not job.no_upload:
            pack(files, folder)
            runtime["working_dir"] = str(folder)
        try:
            return str(
                client.submit_job(
                    entrypoint=entrypoint(job),
                    submission_id=job.submission_id,
                    runtime_env=runtime,
                    metadata={"ortho": job.command[0], **(job.metadata or {})},
                )
            )
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError(f"the cluster did not take the job: {last_line(error)}") from error


def last_line(error: BaseException) -> str:
    """The cluster answers with a traceback; what it found is in the end of it."""
    lines = [line for line in str(error).splitlines() if any(map(str.isalpha, line))]
    return lines[-1].strip()[:300] if lines else type(error).__name__


def follow(client: "JobSubmissionClient", name: str, follow_by: str) -> "JobDetails":
    """Print the job's log as it grows; returns Ray's details of the job once it has ended.

    A connection that breaks is taken up again where it broke, for up to PATIENCE_S. Raises UserError after that.
    """
    import aiohttp

    printed, heard = 0, time.monotonic()
    while True:
        try:
            printed = asyncio.run(print_log(client, name, printed))
            details = client.get_job_info(name)
            if details.status.is_terminal():
                return details
            heard = time.monotonic()
        except (OSError, RuntimeError, aiohttp.ClientError) as error:
            if time.monotonic() - heard > PATIENCE_S:
                raise UserError(
                    f"lost the cluster, where the job may still run: {one_line(error)}; follow it with `{follow_by}`"
                ) from error
        time.sleep(1)


async def print_log(client: "JobSubmissionClient", name: str, printed: int) -> int:
    """Print what the job writes, but for the first `printed` characters; returns how many there are by now."""
    seen = 0
    async for text in client.tail_job_logs(name):
        seen += len(text)
        if seen > printed:
            print(printable(text[printed - seen :]), end="", flush=True)
            printed = seen
    return printed


def outcome(details: "JobDetails", name: str) -> int:
    """The exit code of the job's own command."""
    if details.status == "STOPPED":
        say(f"submit: job {name} was stopped")
        return INTERRUPTED
    if details.driver_exit_code is not None:
        code = int(details.driver_exit_code)
        return code if code >= 0 else 128 - code
    if details.status == "SUCCEEDED":
        return 0
    raise UserError(
        f"the cluster could not run job {name}: {one_line(ValueError(details.message or 'no reason given'))}"
    )


def stop_wanted(name: str) -> bool:
    """Ask the person at the terminal; without one, and after another Ctrl-C, the job is left alone."""
    if not sys.stdin.isatty():
        return False
    try:
        return input(f"\nstop job {name}? [y: stop it, n: let it go on] ").strip().lower() in {"y", "yes"}
    except (EOFError, KeyboardInterrupt):
        return False


if __name__ == "__main__":
    from rayjobs.__main__ import main

    main(["submit", *sys.argv[1:]])
