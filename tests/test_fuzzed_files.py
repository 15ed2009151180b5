"""Files from outside, damaged in every way that hypothesis finds: what comes out is a value, or one line."""

import io
import json
import shutil
import tarfile
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from ortho_core.errors import BadRow, UserError
from ortho_core.evaluation.features import model_type
from ortho_core.generators.lora import DESCRIPTION, read_lora
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.generators.origin import CONVERTED, RECORD, base_name, converted_from, origin_of
from ortho_core.generators.prompt_store import FRAME_IDS, PromptStore
from ortho_core.pairs.own_folders import OWN_MARKS, own_folder
from ortho_core.pairs.pair_set import PairSet
from ortho_core.pairs.prompt_file import read_prompt_rows
from ortho_core.pairs.rows import PairFields
from ortho_core.records.plan import ASSIGNMENT_PLANS, parse_plan
from ortho_core.records.reference_folder import SampleReader, parse_entry
from ortho_core.storage.local import LocalStore
from ortho_core.storage.open import open_store
from ortho_core.text.parsing import NotParsedError, parse_json, parse_toml, parse_yaml
from rayjobs.em.config import EmJob
from rayjobs.reports.curves import TrainingLog, training_charts
from rayjobs.reports.next_steps import settled_rows
from rayjobs.reports.parts import first_failures, quarantine_reasons
from rayjobs.reports.summaries import AssignmentRun, TrainSummary
from rayjobs.sweep.config import SweepJob
from rayjobs.sweep.points import space_of
from rayjobs.training.progress import last_logged
from rayjobs.training.run_files import trim_history
from rayjobs.verb.catalog import CATALOG, read_catalog
from rayjobs.verb.options import parse
from tests.conftest import ROOT
from tests.mutated import QUICK, THOROUGH, damaged, mutated
from tests.ortho_core.pairs.made import png, write_images
from tests.ortho_core.records.test_plan import IMPORTED, RECONSTRUCTION, REWARD

TINY = ROOT / "models" / "tiny-turbo"
ENTRY = {
    "id": "000000_x",
    "prompt": "a digit",
    "image": "images/0.png",
    "noise": "samples/a/best_input_noise.pt",
    "meta": "samples/a/meta.json",
    "noise_scale": 14.6,
    "artifacts": {"best_input_noise": "samples/a/best_input_noise.pt"},
}
SUMMARY = {
    **dict.fromkeys(("rows", "assigned", "quarantined", "evaluations", "rows_this_run"), 3),
    "quarantined_by_reason": {"missing-prompt": 1},
    "mean_initial_loss": 0.5,
    "mean_loss": None,
    "seconds_this_run": 1.5,
    "rows_per_second": 2.0,
    "run_fingerprint": "abc",
    "config": {"pairs": "x", "lora": [], "model": "m"},
    "recognised": {"layout": "metadata"},
}
TRAINED = {
    **dict.fromkeys(("rows", "updates", "best_epoch"), 3),
    **dict.fromkeys(("best_loss", "final_loss", "images_per_second", "seconds_this_run"), 0.5),
    "epochs": [{"loss": 0.5}],
    "validations": [{"update": 1.0, "latent": 0.5}],
    "skipped_updates": [{"update": 1, "rows": ["a"]}],
    "tracker_failures": [],
    "run_fingerprint": "abc",
}
CONFIG = {
    "model": str(TINY),
    "pairs": "examples/digits",
    "work_dir": "runs/x",
    "assign": {"steps": 3, "lr": 0.1, "patch_size": 2},
    "train.lr": 1e-4,
    "cycles": 2,
    "preset": "fast",
}
SPACE = {"train": {"lr": [1e-4, 1e-3], "batch_size": "1,2"}, "assign.steps": 3, "assign.lr": "log:0.1:1"}
LOGGED = [{"update": n, "group": "train", "loss": 0.5, "latent": 0.25} for n in (1, 2, 3)]
FAILURES = [
    {"sample_id": "a", "row": n, "reason": "missing-prompt", "message": "row 1", "image": "a.png"} for n in (1, 2)
]
ORIGIN = {"tiny": {"repository": "a/b", "commit": "c", "license": "mit", "files": {"x": {"size": 3}}}}
CARD = {"base_model": "someone/model", "tags": ["ortho", "one-step"], "library_name": "diffusers"}
COCO = {
    "images": [{"id": 1, "file_name": "0.png"}, {"id": 2, "file_name": "1.png"}],
    "annotations": [{"image_id": 1, "caption": "one"}, {"image_id": 2, "caption": "two"}],
}
ROWS = [{"image": f"{n}.png", "prompt": f"number {n}", "id": n, "more": {"a": [1.5, None]}} for n in range(3)]
HUGGING = {"info": {"features": {"label": {"names": ["zero", "one"], "_type": "ClassLabel"}}}}


def lines(documents: list[Any]) -> st.SearchStrategy[bytes]:
    """JSON lines, the second of which is damaged."""
    first, _, *rest = (json.dumps(document).encode() for document in documents)
    return mutated(documents[1]).map(lambda line: b"\n".join([first, line, *rest]) + b"\n")


def as_yaml(document: Any) -> st.SearchStrategy[bytes]:
    """A YAML document damaged as text, or the JSON of the same with other values, which is YAML too."""
    text = yaml.safe_dump(document).encode()
    odd = st.sampled_from(
        [
            b"&a [*a]",
            b"!!set {x}",
            b"2001-99-99",
            b"!!python/name:os.system",
            b"{{{{",
            b"!!binary x",
            b"<<: *a",
            b"? [a]\n: b",
            b"1:2:3",
        ]
    )
    lines_of = text.splitlines(keepends=True)
    mixed = st.tuples(st.integers(0, len(lines_of)), odd).map(
        lambda at: b"".join([*lines_of[: at[0]], b"x: " + at[1] + b"\n", *lines_of[at[0] :]])
    )
    return st.one_of(damaged(text), mutated(document), mixed)


def rows_of(folder: Path, **fields: Any) -> None:
    pairs = PairSet(folder, PairFields(**fields))
    assert pairs.line()
    pairs.fingerprint()
    for shard in pairs.shards(2):
        for row in pairs.read(shard):
            if isinstance(row, tuple):
                (row[1].reason + str(row[1])).encode()
            else:
                with suppress(BadRow):
                    pairs.fetch(row)


def in_set(name: str, **fields: Any) -> Callable[[bytes, Path], None]:
    def read(content: bytes, folder: Path) -> None:
        write_images(folder, "0.png", "1.png", "2.png")
        (folder / name).write_bytes(content)
        rows_of(folder, **fields)

    return read


def tar_of(content: bytes, folder: Path) -> None:
    with tarfile.open(folder / "a.tar", "w") as tar:
        for name, member in (("0.png", png()), ("0.json", content), ("1.png", png()), ("1.txt", b"one")):
            head = tarfile.TarInfo(name)
            head.size = len(member)
            tar.addfile(head, io.BytesIO(member))
    rows_of(folder)


def parquet_of(content: bytes, folder: Path) -> None:
    table = pa.table({"label": pa.array([0, 1]), "image": pa.array([png(), png()])})
    pq.write_table(table.replace_schema_metadata({b"huggingface": content}), folder / "a.parquet")
    rows_of(folder)


def in_model(name: str) -> Callable[[bytes, Path], None]:
    """A copy of the shipped model, whose weights are links, with another file in the place of one."""

    def read(content: bytes, folder: Path) -> None:
        shutil.copytree(TINY, folder / "model", copy_function=lambda a, b: Path(b).symlink_to(a))
        (folder / "model" / name).unlink(missing_ok=True)
        (folder / "model" / name).write_bytes(content)
        assert ModelFolder.open(folder / "model").fingerprint

    return read


def lora_reference(content: bytes, folder: Path) -> None:
    (folder / "pytorch_lora_weights.safetensors").write_bytes(b"")
    (folder / "lora.json").write_bytes(content)
    ModelFolder.open(folder)


def lora_header(content: bytes, folder: Path) -> None:
    import torch

    file = folder / "a.safetensors"
    try:
        save_file({"unet.a.lora_A.weight": torch.zeros(1)}, file, metadata={DESCRIPTION: content.decode()})
    except UnicodeDecodeError:
        return
    with safe_open(file, "pt") as stored:
        assert DESCRIPTION in stored.metadata()
    read_lora(file)


def read_card(content: bytes, folder: Path) -> None:
    (folder / "README.md").write_bytes(b"---\n" + content + b"---\n\n# A\n")
    assert isinstance(base_name(folder), str)


def read_origin(content: bytes, folder: Path) -> None:
    for name in (RECORD, CONVERTED):
        (folder / name).write_bytes(content)
    str(origin_of(folder))
    converted_from(folder, "f")


def read_manifest(content: bytes, folder: Path) -> None:
    (folder / "samples" / "a").mkdir(parents=True)
    (folder / "samples" / "a" / "meta.json").write_bytes(content)
    (folder / "samples" / "a" / "best_input_noise.pt").write_bytes(b"")
    reader = SampleReader(LocalStore(folder), (4, 8, 8), 14.6, None)
    for line in (content, json.dumps(ENTRY).encode()):
        with suppress(BadRow):
            entry, name = parse_entry(line, 0)
            reader.read(entry, name, 0, copies=False)


def read_log(content: bytes, folder: Path) -> None:
    file = folder / "train_history.jsonl"
    file.write_bytes(content)
    last_logged(file)
    training_charts([TrainingLog(file)])
    trim_history(file, 2)


def read_failures(content: bytes, folder: Path) -> None:
    (folder / "failures.jsonl").write_bytes(content)
    first_failures(open_store(folder))
    quarantine_reasons(open_store(folder))


def read_summaries(content: bytes, folder: Path) -> None:
    (folder / "summary.json").write_bytes(content)
    with suppress(UserError):
        settled_rows(str(folder))
    AssignmentRun.parse(content, "summary.json")


def read_own(content: bytes, folder: Path) -> None:
    for name in OWN_MARKS:
        (folder / name).write_bytes(content)
        own_folder(LocalStore(folder), "", [name])


def prompt_shard() -> bytes:
    """A shard of embeddings of two prompts."""
    import torch

    with tempfile.TemporaryDirectory() as folder:
        store = PromptStore(folder, "fp")
        store.publish("a", {prompt: {"states": torch.ones(2, 3), FRAME_IDS: torch.ones(6)} for prompt in ("a", "b")})
        return store.folder.read("a")


SHARD = prompt_shard()
HEADER = int.from_bytes(SHARD[:8], "little")


def read_embeddings(content: bytes, folder: Path) -> None:
    store = PromptStore(folder, "fp")
    store.folder.create("prompts-000000-0123abcd.safetensors", content)
    assert all(line.isprintable() for line in PromptStore(folder, "fp").open_sound()) or not store.names()
    store.folder.create("prompts-000000-0123abcd.safetensors", content)
    store.open()
    for row in store.rows(["a", "b", "c"], (8, 8)).values():
        assert row["states"].tolist() == [[1.0] * 3] * 2  # whatever the header says


def write(read: Callable[[Path], Any], name: str) -> Callable[[bytes, Path], None]:
    def of_file(content: bytes, folder: Path) -> None:
        (folder / name).write_bytes(content)
        read(folder / name)

    return of_file


def read_config(file: Path) -> None:
    parse(EmJob, ["--config", str(file)], "em")


def read_space(file: Path) -> None:
    space_of(SweepJob(model=TINY, pairs="x", work_dir=file.parent / "out", heldout="y", space=file))


#: What is damaged, and what reads it.
CASES: dict[str, tuple[st.SearchStrategy[bytes], Callable[[bytes, Path], Any]]] = {
    **{
        f"plan of {plan.kind}": (
            mutated(plan.as_json()),
            lambda content, _: parse_plan(content, "p", *ASSIGNMENT_PLANS),
        )
        for plan in (RECONSTRUCTION, REWARD, IMPORTED)
    },
    "summary": (mutated(SUMMARY), read_summaries),
    "summary of training": (mutated(TRAINED), write(TrainSummary.read, "train_summary.json")),
    "manifest": (mutated(ENTRY), read_manifest),
    "config": (as_yaml(CONFIG), write(read_config, "job.yaml")),
    "space": (as_yaml(SPACE), write(read_space, "space.yaml")),
    "model_index": (mutated(json.loads((TINY / "model_index.json").read_text())), in_model("model_index.json")),
    "unet": (mutated(json.loads((TINY / "unet/config.json").read_text())), in_model("unet/config.json")),
    "vae": (mutated(json.loads((TINY / "vae/config.json").read_text())), in_model("vae/config.json")),
    "scheduler": (
        mutated(json.loads((TINY / "scheduler/scheduler_config.json").read_text())),
        in_model("scheduler/scheduler_config.json"),
    ),
    "tokenizer": (
        mutated(json.loads((TINY / "tokenizer/tokenizer_config.json").read_text())),
        in_model("tokenizer/tokenizer_config.json"),
    ),
    "recipe": (mutated({"timestep": 999}), in_model("ortho_recipe.json")),
    "lora.json": (mutated({"base_model": str(TINY), "base_fingerprint": "abc"}), lora_reference),
    "LoRA header": (mutated({"r": 4, "lora_alpha": 8.0, "target_modules": ["a", "b"]}), lora_header),
    "card": (as_yaml(CARD), read_card),
    "origin": (mutated(ORIGIN), read_origin),
    "catalogue": (damaged(CATALOG.read_bytes()[:3000]), write(read_catalog, "catalog.toml")),
    "log": (lines(LOGGED), read_log),
    "failures": (lines(FAILURES), read_failures),
    "own folders": (mutated(RECONSTRUCTION.as_json()), read_own),
    "vision model": (
        mutated({"model_type": "clip"}),
        write(lambda file: model_type(file, "--features"), "config.json"),
    ),
    "prompt embeddings": (damaged(SHARD), read_embeddings),
    "header of prompt embeddings": (
        mutated(json.loads(SHARD[8 : 8 + HEADER])).map(
            lambda header: len(header).to_bytes(8, "little") + header + SHARD[8 + HEADER :]
        ),
        read_embeddings,
    ),
    "prompts": (lines([{"prompt": "a"}, {"prompt": "b", "n": 1}]), write(read_prompt_rows, "p.jsonl")),
    "list of prompts": (mutated(["a", "b"]), write(read_prompt_rows, "p.json")),
    "JSON lines": (lines(ROWS), in_set("pairs.jsonl")),
    "JSON lines with ids": (lines(ROWS), in_set("pairs.jsonl", id_field="id")),
    "JSON list": (mutated(ROWS), in_set("pairs.json")),
    "JSON by images": (mutated({"0.png": "zero", "1.png": {"caption": "one"}}), in_set("pairs.json")),
    "COCO": (mutated(COCO), in_set("pairs.json")),
    "CSV": (damaged(b"image,prompt\n0.png,zero\n1.png,one\n2.png,two\n"), in_set("pairs.csv")),
    "caption files": (mutated({"caption": "zero", "n": 1}), in_set("0.json")),
    "labelled": (mutated({"data": [[0] * 16, [255] * 16]}), write(lambda file: rows_of(file.parent), "0.json")),
    "tar": (mutated({"caption": "zero", "n": 1}), tar_of),
    "Parquet's own": (mutated(HUGGING), parquet_of),
}


def check(case: str, content: bytes, folder: Path) -> None:
    """Raises whatever is neither a value nor one line without secrets and control characters."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    refused = said_by(UserError, CASES[case][1], content, folder)
    assert not any(ord(character) < 32 or 0xD800 <= ord(character) < 0xE000 for character in refused), refused
    assert "secret" not in refused


def said_by(error: type[Exception], read: Callable[..., Any], *arguments: Any) -> str:
    """The line in which something is refused; empty where it is not."""
    try:
        read(*arguments)
    except error as refused:
        return str(refused)
    return ""


def fuzzed(case: str, settings: Any, folder: Path) -> None:
    settings(given(CASES[case][0])(lambda content: check(case, content, folder / "x")))()


@pytest.mark.parametrize("case", CASES)
def test_a_damaged_file_is_read_or_refused_in_one_line(case, tmp_path):
    fuzzed(case, QUICK, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("case", CASES)
def test_thousands_of_damaged_files_are_read_or_refused_in_one_line(case, tmp_path):
    fuzzed(case, THOROUGH, tmp_path)


@pytest.mark.parametrize("parse_text", [parse_json, parse_yaml, parse_toml])
def test_any_bytes_are_parsed_or_refused_in_one_line(parse_text):
    @QUICK
    @given(
        st.one_of(
            st.binary(max_size=200), st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass"))
        )
    )
    def of(content: bytes) -> None:
        refused = said_by(NotParsedError, parse_text, content, "it")
        assert not refused or (refused.startswith("it is not ") and "\n" not in refused and refused.encode())

    of()
