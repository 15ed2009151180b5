"""`ortho submit VERB ...`: run a verb on a running cluster through Ray's job API, and print its log here."""

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

# Ray reads this variable when it is imported. Ray sends no token without it, even where a token is set.
if {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
    os.environ.setdefault("RAY_AUTH_MODE", "token")

#: The packages of this checkout that are uploaded. All other files that a job reads must be on storage that the nodes see.
PACKAGES = ("ortho_core", "rayjobs")

#: A file named on the command line is not uploaded if it is larger than this: it belongs on the cluster's storage.
MAX_FILE_BYTES = 1 << 20

#: Seconds for which the cluster may be unreachable before this command stops following the job.
PATIENCE_S = 120

#: Seconds that a stopped job has to shut down before Ray kills it. Ray's default of 3 s is shorter than Ray's own shutdown.
STOP_WAIT_S = 20

INTERRUPTED = 130


def _names(value: object) -> object:
    """`NAME,NAME` as a tuple."""
    return tuple(name.strip() for name in value.split(",") if name.strip()) if isinstance(value, str) else value


class SubmitJob(BaseModel):
    """Run a verb on a running cluster: `ortho submit --address http://HEAD:8265 assign --pairs ... --out ...`.

    The verb's log is printed here, and its exit code is returned. Ctrl-C asks whether to stop the job. Paths in the verb's
    options are paths on the cluster: absolute, or URLs. Small files with relative paths, and the --config file, are uploaded.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    address: str | None = conduct(
        None, description="the cluster's dashboard, http://HEAD:8265 (none: RAY_API_SERVER_ADDRESS, or RAY_ADDRESS)"
    )
    submission_id: str | None = conduct(None, pattern=r"^[\w.-]+$", description="name of the job (none: Ray makes one)")
    env: Annotated[tuple[str, ...], BeforeValidator(_names)] = decides(
        (), description="NAME,NAME: environment variables of this shell to set for the job too"
    )
    metadata: Annotated[dict[str, str] | None, BeforeValidator(labels)] = conduct(
        None, description="NAME=VALUE,NAME=VALUE, shown with the job in Ray's dashboard"
    )
    no_upload: bool = conduct(False, description="upload no code and no files: the nodes have this package installed")
    detach: bool = conduct(False, description="do not wait for the job: print how to follow it, and exit")
    command: Annotated[tuple[str, ...], Rest()] = decides(min_length=1, description="the verb and its options")


def check(job: SubmitJob) -> dict[str, Path]:
    """The files to upload, by their names in the job's folder.

    Raises UserError for every error that can be found without the cluster. With --no-upload and --config nothing is checked:
    the file is on the cluster.
    """
    verb, options = job.command[0], list(job.command[1:])
    if verb not in VERBS or verb == "submit":
        raise UserError(f"unknown verb {verb!r}; accepted: {', '.join(name for name in VERBS if name != 'submit')}")
    if missing := [name for name in job.env if name not in os.environ]:
        raise UserError(f"--env: {', '.join(missing)} is not set here")
    place = config_place(options)
    if job.no_upload and place is not None:
        return {}
    submit_options = [flag_of(name) for name in SubmitJob.model_fields if name != "command"]
    if late := [each for each in options if each.partition("=")[0].replace("_", "-") in submit_options]:
        raise UserError(f"{late[0].partition('=')[0]} is an option of submit: give it before {verb}")
    parsed = parse(VERBS[verb].model(), options, verb, expand=None)
    if parsed.local:
        raise UserError("--local: submit runs the verb on the cluster of --address; leave --local out")
    files = {} if place is None else {"job.yaml": config_file(config_in(options[place]))}
    for option, path in relative_paths(parsed.job):
        # A pair set or a model may need files beside the one that is named.
        alone = option.rpartition(".")[2].lstrip("-") in {"pairs", "heldout", "model"}
        if job.no_upload or alone or not path.is_file() or ".." in path.parts or path.parts[0] in PACKAGES:
            raise UserError(
                f"{option} {path}: a relative path would lie in the job's folder, which the cluster deletes; accepted: an "
                "absolute path or URL on storage that every node sees, or a small file under this folder, which is uploaded"
            )
        if files.setdefault(path.as_posix(), path) != path:
            raise UserError(f"{option} {path}: the configuration is uploaded under this name; rename the file")
    for name, path in files.items():
        if (size := path.stat().st_size) > MAX_FILE_BYTES:
            raise UserError(
                f"{name} has {size} bytes; files of up to {MAX_FILE_BYTES} are uploaded; put it on storage that every node sees"
            )
    return files


def config_place(options: list[str]) -> int | None:
    """The index in `options` of the argument that names the configuration file; None without one."""
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
    """Copy what is uploaded into `folder`: the two packages and `files`."""
    source = Path(__file__).resolve().parents[1]
    for package in PACKAGES:
        shutil.copytree(source / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name, path in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / name)


def describe(job: SubmitJob) -> dict[str, object]:
    """What a dry run prints: everything that would be sent; environment variables by name only."""
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
    """Submit the job and follow it; returns the verb's exit code, or 130 if the job was stopped. Raises UserError."""
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
            say(f"submit: the job continues; follow it with `{follow_by}`, stop it with `ray job stop {name}`")
            return code
    client.stop_job(name)
    say(f"submit: stopping {name}; the same command continues it later")
    while not client.get_job_status(name).is_terminal():
        time.sleep(0.5)
    return code


def connect(address: str | None) -> "JobSubmissionClient":
    """Ray's client of the job API. Raises UserError if no cluster answers, or if the cluster requires a token."""
    keep_token_private()
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    for name in ("ray", "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if address is not None:
        # Ray prefers this variable to the argument of its client.
        os.environ["RAY_API_SERVER_ADDRESS"] = address if "://" in address else f"http://{address}"
    shown = os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS") or "this machine"
    try:
        return JobSubmissionClient()
    except AuthenticationError as error:
        raise UserError(
            f"the cluster at {shown} accepts jobs with its token only; export RAY_AUTH_MODE=token, and "
            "RAY_AUTH_TOKEN_PATH with the path of the token's file (or RAY_AUTH_TOKEN with the token)"
        ) from error
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"no cluster answers at {shown}: {one_line(error)}") from error


def submit(client: "JobSubmissionClient", job: SubmitJob, files: dict[str, Path]) -> str:
    """Submit the job; returns its name. Raises UserError if the cluster refuses it."""
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
            raise UserError(f"the cluster refused the job: {last_line(error)}") from error


def last_line(error: BaseException) -> str:
    """The last line of the cluster's answer, which is a traceback: the line with the reason."""
    lines = [line for line in str(error).splitlines() if any(map(str.isalpha, line))]
    return lines[-1].strip()[:300] if lines else type(error).__name__


def follow(client: "JobSubmissionClient", name: str, follow_by: str) -> "JobDetails":
    """Print the job's log as it grows; returns Ray's details of the job once it has ended.

    After a lost connection it connects again and continues the log. Raises UserError if that fails for PATIENCE_S.
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
    """Print the job's log after its first `printed` characters; returns how many characters are printed by now."""
    seen = 0
    async for text in client.tail_job_logs(name):
        seen += len(text)
        if seen > printed:
            print(printable(text[printed - seen :]), end="", flush=True)
            printed = seen
    return printed


def outcome(details: "JobDetails", name: str) -> int:
    """The exit code of the verb that the job ran. Raises UserError if Ray could not run it."""
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
    """Whether the user wants to stop the job. False without a terminal and after another Ctrl-C."""
    if not sys.stdin.isatty():
        return False
    try:
        return input(f"\nstop job {name}? [y: stop it, n: let it run] ").strip().lower() in {"y", "yes"}
    except (EOFError, KeyboardInterrupt):
        return False


if __name__ == "__main__":
    from rayjobs.__main__ import main

    main(["submit", *sys.argv[1:]])
