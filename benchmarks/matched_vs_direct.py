"""Does matching help? `python -m benchmarks.matched_vs_direct --data mnist --root DIR --work runs/study`.

A base model, and three ways to teach it 256 images of a hand it never saw: direct SFT on random noise, matched SFT, EM of one to
four cycles; with and without the preserve term; three seeds, each with pairs and noise of its own. Judged on 512 held-out
pairs in the features of a classifier of the real images. The same command again goes on where it was; `--tables` prints what
is there, as Markdown, and draws the figures.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks.study.arms import Protocol, Runs, at, last_of
from benchmarks.study.drawing import draw_curves, draw_samples
from benchmarks.study.laboratory import laboratory, study_parser
from benchmarks.study.mismatch import kids, mismatch_table
from benchmarks.study.tables import Judged, differences, table
from rayjobs.verb.console import say
from rayjobs.verb.session import ray_session

#: The models of the tables and of the pictures.
TITLES = {
    "base": "base",
    "direct_1": "direct SFT, updates of 1 cycle",
    "direct_cost_1": "direct SFT, evaluations of 1 cycle",
    "direct_4": "direct SFT, updates of 4",
    "direct_cost_4": "direct SFT, evaluations of 4",
    "matched_1": "matched SFT, updates of 1 cycle",
    "matched_4": "matched SFT, updates of 4",
    "em_2": "EM, 2 cycles",
    "em_3": "EM, 3 cycles",
    "em_4": "EM, 4 cycles",
    "centered_1": "EM on centred noise, 1 cycle",
    "centered_2": "EM on centred noise, 2 cycles",
    "centered_4": "EM on centred noise, 4 cycles",
}
PICTURES = {"base": "base", "direct_4": "direct", "matched_4": "matched", "em_4": "EM", "centered_4": "EM, centred"}
COMPARED = (
    ("matched SFT less direct, updates of 1 cycle", "matched_1", "direct_1"),
    ("matched SFT less direct, evaluations of 1 cycle", "matched_1", "direct_cost_1"),
    ("matched SFT less direct, updates of 4 cycles", "matched_4", "direct_4"),
    ("EM less direct, updates of 4 cycles", "em_4", "direct_4"),
    ("EM less direct, evaluations of 4 cycles", "em_4", "direct_cost_4"),
    ("EM less matched SFT, updates of 4 cycles", "em_4", "matched_4"),
    ("EM on centred noise less EM, 4 cycles", "centered_4", "em_4"),
    ("EM on centred noise less direct, evaluations of 4 cycles", "centered_4", "direct_cost_4"),
)


def main() -> None:
    parser = study_parser(__doc__)
    parser.add_argument("--preserve", type=float, nargs="+", default=[0.0, 0.1], help="weights of the preserve term")
    parser.add_argument("--cycles", type=int, default=4)
    parser.add_argument("--tables", type=Path, help="make tables and figures of what is there, into this folder")
    args = parser.parse_args()
    lab = laboratory(args)
    protocols = [Protocol(cycles=args.cycles, preserve=preserve) for preserve in args.preserve]
    if args.tables is not None:
        show([[Runs(lab, protocol, seed) for seed in args.seeds] for protocol in protocols], args.tables)
        return
    with ray_session():
        for seed in args.seeds:
            for protocol in protocols:
                say(f"study: {args.data}, seed {seed}, preserve weight {protocol.preserve:g}")
                Runs(lab, protocol, seed).judge()


def show(runs: Sequence[Sequence[Runs]], out: Path) -> None:
    """Print the tables and draw the figures of each protocol's seeds."""
    out.mkdir(parents=True, exist_ok=True)
    first = runs[0][0]
    accuracy = json.loads((first.lab.judge() / "accuracy.json").read_text())
    print(f"judge: {accuracy['accuracy']:.4f} of {accuracy['classes']} classes named right on test images\n")
    curves = {}
    for seeds in runs:
        weight = seeds[0].protocol.preserve
        judged = curves[weight] = Judged(tuple(one.folder / "evaluation" for one in seeds))
        print(f"**preserve weight {weight:g}, {len(seeds)} seeds**\n\n{table(judged, TITLES)}\n")
        print(f"{differences(judged, COMPARED)}\n")
        print(f"{mismatch_table([kids(one.lab, one.seed, trained(one)) for one in seeds])}\n")
        for one in seeds:
            print(f"seed {one.seed}: {json.loads((one.folder / 'cost.json').read_text())}")
        picture = out / f"study-{first.lab.work.name}-{weight:g}.png"
        draw_samples(seeds[0].folder / "evaluation", PICTURES, 16, picture)
    draw_curves(curves, first.protocol.updates, out / f"study-{first.lab.work.name}.png")


def trained(runs: Runs) -> dict[str, tuple[Path, Path]]:
    """Models of one seed and the assignments that they were trained on; the base beside them."""
    protocol, folder = runs.protocol, runs.folder
    n, first = protocol.cycles, folder / "em" / "cycle_01" / "assignments"
    found = {"base": (runs.lab.base(), first)}
    found["matched SFT, updates of 1 cycle"] = at(folder / "matched", protocol.epochs), first
    found[f"matched SFT, updates of {n}"] = at(folder / "matched", protocol.epochs * n), first
    for work, title in (("em", "EM"), ("centered", "EM on centred noise")):
        last = folder / work / f"cycle_{n:02d}" / "assignments"
        found[f"{title}, {n} cycles"] = last_of(folder / work, n), last
    return found


if __name__ == "__main__":
    main()
