"""Time to refuse an unusable Ray address: `python -m benchmarks.refusals --out runs/refusals.json`.

`ortho assign` with RAY_ADDRESS at a closed port, at a port that accepts connections and never answers, at a web server, at a Ray
that requires a token, and at a job address; and with Ray's address file of a cluster that has ended. Measured: seconds of the
command, seconds after its first line (these are Ray's), and its last line. `--against CHECKOUT` also runs another checkout of
this repository, each command for at most `--limit` seconds.
"""

import argparse
import http.server
import logging
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray

from benchmarks.results import write_results

VERB = ["-m", "rayjobs", "assign", "--pairs", "examples/digits", "--model", "models/tiny-turbo", "--out"]


@contextmanager
def cases() -> Iterator[dict[str, dict[str, str]]]:
    """The environment variables for each kind of address; the servers behind them end after the block."""
    with socket.socket() as silent, socket.socket() as gone, tempfile.TemporaryDirectory() as folder:
        for listener in (silent, gone):
            listener.bind(("127.0.0.1", 0))
        silent.listen()
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        dead = f"127.0.0.1:{gone.getsockname()[1]}"
        record = Path(folder) / "ray" / "ray_current_cluster"
        record.parent.mkdir()
        record.write_text(dead)
        addresses = {
            "dead": dead,
            "silent": f"127.0.0.1:{silent.getsockname()[1]}",
            "web server": f"127.0.0.1:{server.server_port}",
            "token": ray.get_runtime_context().gcs_address,
            "job address": "http://127.0.0.1:8265",
        }
        try:
            yield {name: {"RAY_ADDRESS": place} for name, place in addresses.items()} | {
                "stale file": {"RAY_ADDRESS": "", "RAY_TMPDIR": folder}
            }
        finally:
            ray.shutdown()
            server.shutdown()


def refusal(checkout: Path, variables: dict[str, str], limit: float) -> dict[str, object]:
    """Run the command in a checkout: its seconds and its last line; None if it had to be ended."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    environment = kept | {"PYTHONPATH": str(checkout)} | variables
    with tempfile.TemporaryDirectory() as out:
        began = time.monotonic()
        command = [sys.executable, *VERB, f"{out}/out"]
        process = subprocess.Popen(command, cwd=checkout, env=environment, stderr=subprocess.PIPE, text=True)
        watch = threading.Timer(limit, process.kill)
        watch.start()
        assert process.stderr is not None
        lines = [(time.monotonic(), line.strip()) for line in process.stderr if line.strip()]
        code = process.wait()
        watch.cancel()
        ended = time.monotonic()
    seconds = {"whole": round(ended - began, 1), "from_first_line": round(ended - lines[0][0], 1) if lines else None}
    return {**seconds, "lines": len(lines), "last_line": lines[-1][1] if lines and code >= 0 else None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, help="another checkout")
    parser.add_argument("--limit", type=float, default=900, help="seconds after which a command is ended")
    parser.add_argument("--out", type=Path, help="a JSON file")
    arguments = parser.parse_args()
    results: dict[str, object] = {}
    with cases() as kinds:
        for checkout in filter(None, (Path.cwd(), arguments.against)):
            for name, variables in kinds.items():
                found = refusal(checkout.resolve(), variables, arguments.limit)
                results[f"{name}, {checkout.name}"] = found
                print(f"{name:12}{checkout.name:16}{found['whole']:8} s  {found['last_line']}", flush=True)
    write_results(results, arguments.out)


if __name__ == "__main__":
    main()
