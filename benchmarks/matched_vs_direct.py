"""Results at plain noise: `python -m benchmarks.matched_vs_direct --data mnist --root DIR --work runs/study`.

A base model, and several ways to fine-tune it on 256 images in a handwriting that it never saw (`benchmarks.study.arms`), each
with the same number of generator evaluations; three seeds, each with other pairs and noise. Judged at plain noise on held-out
pairs, in the features of a classifier of the real images, and by the slant and the boldness of the samples. The same command
again resumes; `--arms` trains and judges some arms; `--more` judges some trained arms on more images, only at plain noise;
`--tables` prints the results so far as Markdown and draws the samples.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from benchmarks.study.appearance import Matched, appearance
from benchmarks.study.arms import ARMS, Arm, Protocol, Runs
from benchmarks.study.drawing import draw_samples
from benchmarks.study.laboratory import Laboratory, laboratory, study_parser
from benchmarks.study.rivals import RIVAL_ARMS, Rival, RivalRuns
from benchmarks.study.tables import APPEARANCE, PLAIN, Judged, differences, table
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.records.assignments import Assignments
from rayjobs.verb.console import say
from rayjobs.verb.session import ray_session

#: All arms: ours, and methods of others.
EVERY_ARM: Mapping[str, Arm | Rival] = {**ARMS, **RIVAL_ARMS}
#: Arms that need a text-to-image pipeline.
TEXT_ARMS = RIVAL_ARMS.keys() | {"em_general"}
#: Arms in the pictures.
PICTURES = ("base", "direct", "matched_preserve", "em", "em_elsewhere", "em_general")


def main() -> None:
    parser = study_parser(__doc__)
    parser.add_argument("--arms", nargs="+", choices=list(EVERY_ARM), help="default: all of ours")
    parser.add_argument("--evaluations", type=float, default=Protocol.evaluations, help="of a row, over all of an arm")
    parser.add_argument("--tables", type=Path, help="write tables and figures of the results so far into this folder")
    parser.add_argument("--more", type=int, metavar="ROWS", help="KID of these arms over other held-out images")
    args = parser.parse_args()
    of_text = TEXT_ARMS if args.data != "tiny-turbo" else set()
    args.arms = args.arms or [name for name in ARMS if name not in of_text]
    if wrong := sorted(of_text & set(args.arms)):
        parser.error(f"--arms {wrong[0]} needs a text-to-image pipeline: --data tiny-turbo")
    lab = laboratory(args)
    runs = [RivalRuns(lab, Protocol(args.evaluations), seed) for seed in args.seeds]
    if args.tables is not None:
        show(runs, args.arms, args.tables)
        return
    with ray_session():
        if args.more is not None:
            show_more([one.judge_more(args.arms, args.more) for one in runs], args.arms)
            return
        for one in runs:
            for name in args.arms:
                say(f"study: {args.data}, seed {one.seed}, {EVERY_ARM[name].title}")
                judge(one, name)


def judge(runs: Runs, name: str) -> None:
    """Train and judge an arm, and measure the handwriting of its samples."""
    models = runs.judge(name)
    out = runs.judged(name) / APPEARANCE
    if not out.exists():
        found = appearance(
            runs.lab, runs.judged(name), models, {name: matched(runs, name)} if EVERY_ARM[name].cycles else {}
        )
        out.write_text(json.dumps(found, indent=1) + "\n")


def matched(runs: Runs, name: str) -> Matched:
    """The assignments of an arm's last E-step."""
    made = Assignments(runs.assignments(name))
    rows = range(len(made))
    shape = ModelFolder.open(runs.lab.base()).latent_shape
    noise = made.noise(rows, shape)
    if ARMS[name].train.get("center_noise") is None:
        noise = noise - made.mean_noise(shape)
    return Matched([row["prompt"] for row in made.rows(rows, ["prompt"])], torch.as_tensor(noise))


def show(runs: Sequence[Runs], names: Sequence[str], out: Path) -> None:
    """Print the tables and draw the samples of each seed."""
    out.mkdir(parents=True, exist_ok=True)
    lab, protocol = runs[0].lab, runs[0].protocol
    accuracy = json.loads((lab.judge() / "accuracy.json").read_text())
    print(f"judge: {accuracy['accuracy']:.4f} of {accuracy['classes']} classes named right on test images\n")
    done = [name for name in names if all((one.judged(name) / APPEARANCE).exists() for one in runs)]
    judged = Judged(tuple({name: one.judged(name) for name in done} for one in runs))
    for of, title in (("", f"{protocol.evaluations:g} evaluations of a row"), ("_equal", f"{protocol.equal} epochs")):
        titles = {"base": "base"} | {name + of: EVERY_ARM[name].title for name in done}
        print(f"**{title}, {len(runs)} seeds**\n\n{table(judged, titles, PLAIN | learned(lab))}\n")
        print(f"{table(judged, {'targets': 'targets'} | titles, hand_of(lab))}\n")
        for other in ("direct", "matched_preserve"):
            against = [(f"{EVERY_ARM[name].title} less {ARMS[other].title}", name + of, other + of) for name in done]
            print(f"{differences(judged, [one for one in against if one[1] != one[2]])}\n")
    places = {"base": runs[0].judged(done[0])} | {name: runs[0].judged(name) for name in PICTURES if name in done}
    draw_samples(
        places,
        {"base": "base"} | {name: EVERY_ARM[name].title for name in done},
        16,
        out / f"study-{lab.work.name}.png",
    )


def show_more(places: Sequence[Path], names: Sequence[str]) -> None:
    """Print the distances to more held-out images, and their differences from that of the first arm."""
    judged = Judged(tuple({"all": place} for place in places))
    titles = {"base": "base"} | {name: EVERY_ARM[name].title for name in names}
    print(f"{table(judged, titles, {name: PLAIN[name] for name in ('kid', 'fid', 'precision', 'recall')})}\n")
    first = names[0]
    print(differences(judged, [(f"{titles[name]} less {titles[first]}", name, first) for name in names[1:]]))


def learned(lab: Laboratory) -> dict[str, str]:
    """The columns about learning, wanted and unwanted, by their titles."""
    return {f"{name}_closed": f"{name} gap closed" for name in lab.hand} | {"drift_others": "drift at other prompts ↓"}


def hand_of(lab: Laboratory) -> dict[str, str]:
    """The columns of the handwriting's statistics, by their titles."""
    said = {
        "": "",
        "_spread": ", spread",
        "_heldout": " at held-out matched noise",
        "_training": " at its training noise",
        "_tilt": " of the base there",
    }
    return {f"{name}{of}": f"{name}{title}" for of, title in said.items() for name in lab.hand}


if __name__ == "__main__":
    main()
