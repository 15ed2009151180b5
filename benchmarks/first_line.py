"""Time to recognise, plan and read a pair set: `python -m benchmarks.first_line --out runs/first-line.json`.

Measured for sets with many rows: seconds until the first line of every verb, then the planning and the reading of rows.
`--against CHECKOUT` also runs planning and reading in another checkout of this repository, in turns, and reports the ratios.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.assign_scale import repeated_pairs
from benchmarks.look import captioned_files
from benchmarks.results import write_results

#: Prints the clock time and the processor time of each step in seconds, as JSON.
STEPS = """
import json, sys, time
from ortho_core.pairs.pair_set import PairSet

def timed(step):
    began, before = time.perf_counter(), time.process_time()
    result = step()
    return result, [time.perf_counter() - began, time.process_time() - before]

found = {}
pairs, found["open"] = timed(lambda: PairSet(sys.argv[1]))
rows, found["count"] = timed(pairs.rows)
shards, found["cut"] = timed(lambda: pairs.shards(1024))
few = shards[:: max(1, len(shards) // 100)]
read, found["read"] = timed(lambda: sum(1 for shard in few for row in pairs.read(shard)))
found["line"] = [a + b for a, b in zip(found["open"], found["count"])]
found["plan"] = [a + b for a, b in zip(found["line"], found["cut"])]
print(json.dumps({"rows": rows, "read_rows": read, **found}))
"""


def prompts(rows: int) -> list[str]:
    return [f"a handwritten digit, number {i}" for i in range(rows)]


def comma_separated(folder: Path, rows: int) -> Path:
    shutil.copytree("examples/digits/images", folder / "images")
    lines = (f'images/{i % 512:04d}.png,"a digit, number {i}"\n' for i in range(rows))
    (folder / "metadata.csv").write_text("file_name,text\n" + "".join(lines))
    return folder


def json_list(folder: Path, rows: int) -> Path:
    shutil.copytree("examples/digits/images", folder / "images")
    made = [{"image": f"images/{i % 512:04d}.png", "caption": prompt} for i, prompt in enumerate(prompts(rows))]
    (folder / "data.json").write_text(json.dumps(made))
    return folder


def parquet(folder: Path, rows: int) -> Path:
    folder.mkdir(parents=True)
    table = pa.table({"prompt": prompts(rows), "image": [f"images/{i % 512:04d}.png" for i in range(rows)]})
    pq.write_table(table, folder / "part.parquet", row_group_size=1024)
    return folder


def tar(folder: Path, rows: int) -> Path:
    """Samples with an image and a caption each."""
    folder.mkdir(parents=True)
    image = Path("examples/digits/images/0000.png").read_bytes()
    with tarfile.open(folder / "00000.tar", "w") as archive:
        for i, prompt in enumerate(prompts(rows)):
            for suffix, content in (("png", image), ("txt", prompt.encode())):
                member = tarfile.TarInfo(f"{i:08d}.{suffix}")
                member.size = len(content)
                archive.addfile(member, BytesIO(content))
    return folder


#: The sets, and their number of rows (for files in one folder: of files) at scale 1.
SETS: dict[str, tuple[Callable[[Path, int], Path], int]] = {
    "files in one folder, captions beside the images": (captioned_files, 100_000),
    "rows of JSON": (repeated_pairs, 1_000_000),
    "rows of CSV": (comma_separated, 1_000_000),
    "a JSON list": (json_list, 1_000_000),
    "rows of Parquet": (parquet, 1_000_000),
    "samples in a tar": (tar, 50_000),
}


def measured(checkout: Path, pairs: Path) -> dict[str, list[float]]:
    """The output of `STEPS` with the packages of a checkout; None if these cannot read the set."""
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    command = [sys.executable, "-c", STEPS, str(pairs)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=checkout, env=environment)
    if done.returncode:
        if "NoPairSet" in done.stderr:
            return {}
        raise RuntimeError(done.stderr)
    found: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scale", type=float, default=1.0, help="share of the rows of each set")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--against", type=Path, help="another checkout")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    places = {"here": Path.cwd()} | ({"there": args.against.absolute()} if args.against else {})
    results = {}
    print("| | rows | first line, s | planned, s | rows read per s |" + (" planned | read |" if args.against else ""))
    print("|---|---|---|---|---|" + ("---|---|" if args.against else ""))
    with tempfile.TemporaryDirectory() as scratch:
        for k, (title, (make, count)) in enumerate(SETS.items()):
            pairs = make(Path(scratch) / f"set-{k}", max(1024, int(count * args.scale)))
            turns = [{name: measured(place, pairs) for name, place in places.items()} for _ in range(args.turns)]
            results[title] = turns
            print(row(title, turns), flush=True)
    write_results(results, args.out)


def row(title: str, turns: list[dict[str, dict[str, list[float]]]]) -> str:
    """Medians of clock time; ratios to the other checkout of processor time, which other programs disturb less."""

    def median(step: str, place: str = "here", clock: int = 0) -> float:
        return statistics.median(turn[place][step][clock] for turn in turns)

    first = turns[0]["here"]
    cells = [f"{first['rows']:,}", f"{median('line'):.1f}", f"{median('plan'):.1f}"]
    cells.append(f"{first['read_rows'] / median('read'):,.0f}")
    if "there" in turns[0]:
        known = turns[0]["there"]
        cells += [f"{median(n, clock=1) / median(n, 'there', 1):.2f}" if known else "–" for n in ("plan", "read")]
    return f"| {title} | " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
