import json
import os
import pickle
import zipfile

import pytest
import torch

from ortho_core.errors import BadRow, UserError
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.noise.seeded import seeded_normal
from ortho_core.pairs.pair_set import PairSet
from ortho_core.records.reference_folder import (
    COLUMNS,
    LONGEST,
    SampleReader,
    manifest_entry,
    manifest_lines,
    parse_entry,
    sample_folder,
    write_sample,
)
from ortho_core.storage.local import LocalStore

SHAPE = (4, 8, 8)
SCALE = 14.6
NOISE = seeded_normal([1], SHAPE)
RECORD = dict.fromkeys(COLUMNS) | {"sample_id": "a", "prompt": "a cat", "image": "cat.png", "loss": 0.5, "drift": 0.1}


class Store(LocalStore):
    """A samples folder in which a test puts one noise file."""

    def put(self, content, name="samples/a/best_input_noise.pt"):
        (self.path / name).parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            (self.path / name).write_bytes(content)
        else:
            torch.save(content, self.path / name)


@pytest.fixture
def root(tmp_path):
    return Store(tmp_path / "reference")


def read(root, entry=None, scale=None, row=7, copies=False, **more):
    entry = {"id": "a", "prompt": "a cat", "image": "cat.png"} | (entry or {}) | more
    entry, name = parse_entry(json.dumps(entry).encode(), row)
    return SampleReader(root, SHAPE, SCALE, scale).read(entry, name, row, copies=copies)


def refused(root, reason, match, entry=None, **more):
    with pytest.raises(BadRow, match=match) as raised:
        read(root, entry, **more)
    assert raised.value.reason == reason
    assert "\n" not in str(raised.value)


def test_what_is_written_is_what_the_reference_feeds_its_network(tiny_turbo, generator, root):
    """The reference's own arithmetic on the file: scale_model_input, network, scheduler step."""
    write_sample(root, 0, RECORD, NOISE[0], ModelFolder.open(tiny_turbo).noise_scale)
    latents = torch.load(root.path / "samples/a/best_input_noise.pt", weights_only=True)
    assert (latents.shape, latents.dtype) == ((1, *SHAPE), torch.float32)
    pipeline = generator.pipeline
    scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, timestep_spacing="trailing")
    scheduler.set_timesteps(1)
    t = scheduler.timesteps[0]
    condition = generator.encode_prompts(["a red handwritten two on a white background"])
    tensors = dict(condition.tensors)
    with torch.no_grad():
        output = pipeline.unet(
            scheduler.scale_model_input(latents, t),
            t,
            encoder_hidden_states=tensors.pop("encoder_hidden_states"),
            added_cond_kwargs=tensors,
            return_dict=False,
        )[0]
        theirs = scheduler.step(output, t, latents, return_dict=False)[0]
        torch.testing.assert_close(generator.denoise(NOISE, condition), theirs, rtol=0, atol=1e-4)


def test_no_two_ids_share_a_folder_and_every_folder_is_a_plain_name():
    long = "x" * 300
    ids = ["a", "A/b", "A%2Fb", ".", "..", "...", ".x", "%2Ex", "a\0b", "a\nb", "ä", "日" * 90, long, long + "y", "CON"]
    ids += [sample_folder(long), "x" * (LONGEST - 1), "x" * LONGEST, " ", "a b", "~", "\\", "C:\\x"]
    folders = [sample_folder(name) for name in ids]
    assert len({f.casefold() for f in folders}) == len(ids)
    assert all(f.isascii() and f.isprintable() and not f.startswith(".") for f in folders)
    assert all(0 < len(f) <= LONGEST and not {"/", "\\", " ", ":"} & set(f) for f in folders)
    assert folders[:5] == ["a", "A%2Fb", "A%252Fb", "%2E", "%2E."]


def test_writing_again_skips_what_is_there_and_makes_what_is_not(root, left_aside):
    folder = root.path / "samples/a"
    assert write_sample(root, 0, RECORD, NOISE[0], SCALE)
    before = (folder / "meta.json").stat().st_mtime_ns
    assert not write_sample(root, 0, RECORD, NOISE[0], SCALE)
    assert (folder / "meta.json").stat().st_mtime_ns == before
    for gone in ("meta.json", "best_input_noise.pt"):
        (folder / gone).unlink()
        left_aside(folder / "best_input_noise.pt")
        assert write_sample(root, 0, RECORD, NOISE[0], SCALE)
        assert sorted(f.name for f in folder.iterdir()) == ["best_input_noise.pt", "meta.json"]


def test_a_folder_of_another_row_or_program_is_not_written_over(root):
    write_sample(root, 0, RECORD, NOISE[0], SCALE)
    with pytest.raises(
        UserError, match=r"belongs to row 0 \('a'\) and to row 1 \('a'\): every sample needs its own id"
    ):
        write_sample(root, 1, RECORD, NOISE[0], SCALE)
    (root.path / "samples/a/meta.json").write_text('{"prompt": "theirs"}')
    with pytest.raises(UserError, match="was not written by an export"):
        write_sample(root, 0, RECORD, NOISE[0], SCALE)


def test_what_was_written_is_read_back(root):
    record = RECORD | {
        "noise_seed": 2**62,
        "patch_size": 2,
        "evaluations": 12,
        "initial_loss": float("nan"),
        "loss": 0.5,
    }
    write_sample(root, 0, record, NOISE[0], 3.0)
    entry = manifest_entry(root, record, "/data/")
    assert entry["target_image_path"] == "/data/cat.png"
    assert os.path.samefile(entry["best_input_noise_path"], root.path / entry["noise"])
    sample = read(root, entry)  # the scale that meta.json states, not the model's
    torch.testing.assert_close(sample.noise, NOISE[0], rtol=0, atol=1e-6)
    assert sample.images == ("cat.png",)
    kept = {
        k: sample.columns[k]
        for k in ("sample_id", "prompt", "noise_seed", "patch_size", "evaluations", "loss", "drift")
    }
    assert kept == {k: record[k] for k in kept}
    assert sample.columns["initial_loss"] is None


def newer_reference(root):
    """A record as the reference's present builder writes it, into manifest and meta.json alike."""
    stats = {
        "loss": 0.2,
        "best_loss": 0.2,
        "best_latent_loss": 0.1,
        "best_pixel_l1": 0.3,
        "best_drift_reg": 2 * SCALE**2,
    }
    return {
        "sample_id": "000007_a",
        "prompt": "a cat",
        "target_image_path": f"{root.location}/samples/000007_a/a.png",
        "best_input_noise_path": f"{root.location}/samples/000007_a/best_input_noise.pt",
        "source_image_path": "/data/images/a.png",
        "source_rel_image_path": "images/a.png",
        "line_idx": 7,
        "stats": stats | {"loss_history": [0.9, 0.2, 0.4]},
    }


def older_reference(root):
    stats = {
        "loss": 0.2,
        "best_latent_loss": float("nan"),
        "latent_loss": 0.1,
        "pixel_l1": 0.3,
        "drift_reg": 2 * SCALE**2,
    }
    return {
        "sample_id": "000007_a",
        "prompt": "a cat",
        "source": {"line_idx": 7, "image_rel": "images/a.png", "image_abs": "/data/images/a.png"},
        "artifacts": {
            "reference_image": "samples/000007_a/a.png",
            "best_input_noise": "samples/000007_a/best_input_noise.pt",
        },
        "stats": stats | {"best_latent_loss": 0.1, "loss_history": [0.9, 0.2, 0.4]},
    }


@pytest.mark.parametrize("made_by", [newer_reference, older_reference])
def test_both_generations_of_the_reference_are_read(root, made_by):
    record = made_by(root)
    root.put(SCALE * NOISE, "samples/000007_a/best_input_noise.pt")
    (root.path / "samples/000007_a/meta.json").write_text(json.dumps(record))
    entry, name = parse_entry(json.dumps(record).encode(), 7)
    reader = SampleReader(root, SHAPE, SCALE, None)
    sample = reader.read(entry, name, 7, copies=False)
    torch.testing.assert_close(sample.noise, NOISE[0], rtol=0, atol=1e-6)
    assert sample.images == ("images/a.png",)
    numbers = {"loss": 0.2, "latent_loss": 0.1, "pixel_l1": 0.3, "drift": 2.0, "initial_loss": 0.9, "evaluations": 3}
    assert {k: sample.columns[k] for k in numbers} == pytest.approx(numbers)
    assert reader.inside(reader.read(entry, name, 7, copies=True).images[0]) == "samples/000007_a/a.png"


def test_a_folder_that_was_moved_is_read_where_it_is(root, tmp_path):
    record = newer_reference(LocalStore(tmp_path / "before"))
    root.put(SCALE * NOISE, "samples/000007_a/best_input_noise.pt")
    root.put(b"image", "samples/000007_a/a.png")
    entry, name = parse_entry(json.dumps(record).encode(), 7)
    sample = SampleReader(root, SHAPE, SCALE, None).read(entry, name, 7, copies=True)
    assert SampleReader(root, SHAPE, SCALE, None).inside(sample.images[0]) == "samples/000007_a/a.png"


@pytest.mark.parametrize("field", ["noise", "best_input_noise", "noise_path", "best_input_noise_path"])
@pytest.mark.parametrize("id_field", ["id", "sample_id", "name"])
def test_fields_may_have_any_of_the_usual_names(root, field, id_field):
    root.put(SCALE * NOISE, "n.pt")
    line = json.dumps({id_field: 12, field: "n.pt", "prompt": "x", "image": "y"}).encode()
    entry, name = parse_entry(line, 0)
    assert SampleReader(root, SHAPE, SCALE, None).read(entry, name, 0, copies=False).columns["sample_id"] == "12"


@pytest.mark.parametrize("folder", ["a b", "a%20b"])
def test_without_a_path_the_noise_is_where_both_programs_put_it(root, folder):
    root.put(SCALE * NOISE, f"samples/{folder}/best_input_noise.pt")
    (root.path / f"samples/{folder}/meta.json").write_text('{"prompt": "from meta"}')
    assert read(root, id="a b", prompt=None).columns["prompt"] == "from meta"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("wrap", [lambda n: n, lambda n: n[0], lambda n: {"noise": n, "step": 3, "x": torch.zeros(2)}])
def test_these_tensors_are_accepted(root, dtype, wrap):
    root.put(wrap((SCALE * NOISE).to(dtype)))
    noise = read(root).noise
    assert (noise.shape, noise.dtype) == (SHAPE, torch.float32)
    torch.testing.assert_close(noise, NOISE[0], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    ("content", "reason", "match"),
    [
        (torch.zeros(2, *SHAPE), "wrong-shape", r"row 7: .*has shape \(2, 4, 8, 8\); accepted: \(4, 8, 8\) or"),
        (torch.zeros(256), "wrong-shape", "has shape"),
        (NOISE.double(), "wrong-dtype", "float64"),
        (NOISE.long(), "wrong-dtype", "int64"),
        (torch.empty(1, *SHAPE, device="meta"), "wrong-dtype", "on meta"),
        pytest.param(NOISE.to_sparse(), "wrong-dtype", "sparse", marks=pytest.mark.filterwarnings("ignore")),
        (torch.full((1, *SHAPE), float("nan")), "non-finite-noise", "not finite"),
        ({"a": NOISE, "b": NOISE}, "not-a-noise", "mapping with 2 tensors"),
        ({"a": 3}, "not-a-noise", "mapping with 0 tensors"),
        ([NOISE], "not-a-noise", "holds a list"),
        (b"", "unreadable-noise", "not a file of plain tensors"),
        (b"PK\3\4 and so on", "unreadable-noise", "not a file of plain tensors"),
        (NOISE, "wrong-scale", r"root mean square (1|0\.9).*--noise-scale states"),
        (torch.zeros(1, *SHAPE), "wrong-scale", "root mean square 0"),
        (torch.zeros(1 << 25), "too-large", "bytes unpacked"),
    ],
)
def test_anything_else_is_refused(root, content, reason, match):
    root.put(content)
    refused(root, reason, match)


def test_a_file_that_unpacks_to_far_more_is_not_unpacked(root):
    (root.path / "samples/a").mkdir(parents=True)
    with zipfile.ZipFile(root.path / "samples/a/best_input_noise.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(1 << 27))
    refused(root, "too-large", "134217728 bytes unpacked; accepted: 67108864")


@pytest.mark.parametrize("by_torch", [True, False])
def test_a_pickle_that_would_run_code_does_not(root, tmp_path, by_torch):
    marker = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(marker),)

    root.put(Evil() if by_torch else pickle.dumps(Evil()))
    refused(root, "unreadable-noise", "row 7: .*not a file of plain tensors")
    root.put({"noise": SCALE * NOISE, "x": Evil()})
    refused(root, "unreadable-noise", "row 7: .*not a file of plain tensors")
    assert not marker.exists()


@pytest.mark.parametrize("field", ["noise", "meta"])
@pytest.mark.parametrize("way", ["../out.pt", "absolute", "samples/../../out.pt", "link.pt", "/x/samples/../../out.pt"])
def test_paths_that_lead_out_are_refused(root, tmp_path, field, way):
    root.put(SCALE * NOISE)
    root.put(SCALE * NOISE, "../out.pt")
    (root.path / "link.pt").symlink_to(tmp_path / "out.pt")
    way = str(tmp_path / "out.pt") if way == "absolute" else way
    refused(root, "outside-root", f"row 7: {field} .* lies outside", {field: way})
    refused(root, "outside-root", "lies outside", {"id": "../../../out"})


def test_a_moved_folders_paths_are_not_a_way_out_either(root, tmp_path):
    """What looks like a path of before a move is only ever looked for in the folder."""
    elsewhere = Store(tmp_path / "elsewhere")
    elsewhere.put(SCALE * NOISE, "samples/b/best_input_noise.pt")
    root.put(SCALE * NOISE)
    refused(root, "outside-root", "lies outside", noise=f"{elsewhere.path}/samples/b/best_input_noise.pt")
    (root.path / "samples/b").symlink_to(elsewhere.path / "samples/b")
    refused(root, "outside-root", "lies outside", noise=f"{elsewhere.path}/samples/b/best_input_noise.pt")


@pytest.mark.parametrize("name", ["nowhere.pt", "samples", "", "a\0b", "x" * 5000, "pipe"])
def test_noise_that_is_no_file_is_missing(root, name):
    root.put(SCALE * NOISE)
    os.mkfifo(root.path / "pipe")
    refused(root, "missing-noise", "does not exist", noise=name)


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"id": None}, "missing-id"),
        ({"id": True}, "missing-id"),
        ({"id": ""}, "missing-id"),
        ({"id": "\ud800"}, "not-text"),
        ({"prompt": " "}, "missing-prompt"),
        ({"prompt": 3}, "missing-prompt"),
        ({"prompt": "\ud800"}, "not-text"),
        ({"image": None}, "missing-image"),
        ({"noise": {"path": "x"}}, "missing-noise"),
    ],
)
def test_entries_that_say_too_little_are_refused(root, entry, reason):
    root.put(SCALE * NOISE)
    refused(root, reason, "row 7", entry)


def test_lines_and_meta_files_that_are_no_objects_are_refused(root):
    root.put(SCALE * NOISE)
    for line in (b"{", b"[]", b"\xff", b"[" * 100_000):
        with pytest.raises(BadRow, match="row 3"):
            parse_entry(line, 3)
    (root.path / "samples/a/meta.json").write_text("3")
    refused(root, "not-json", "is a JSON int")


@pytest.mark.parametrize("wrong", [True, "x", -1, 2**80, 1e400, float("nan"), [], {}])
def test_numbers_that_are_none_are_unknown(root, wrong):
    root.put(NOISE * SCALE)
    names = ("loss", "noise_seed", "patch_size", "evaluations", "stats", "model_fingerprint", "noise_scale")
    columns = read(root, dict.fromkeys(names, wrong) | {"noise_scale": None}).columns
    assert (columns["noise_seed"], columns["patch_size"], columns["evaluations"]) == (0, 1, None)
    assert columns["loss"] in (None, -1.0, 2.0**80)
    if wrong != 2**80:
        torch.testing.assert_close(read(root, noise_scale=wrong).noise, NOISE[0], rtol=0, atol=1e-6)


def test_a_stated_scale_is_taken_at_its_word(root):
    root.put(NOISE)
    torch.testing.assert_close(read(root, scale=1.0).noise, NOISE[0])
    torch.testing.assert_close(read(root, scale=0.01).noise, 100 * NOISE[0])
    torch.testing.assert_close(read(root, {"noise_scale": 2.0}).noise, NOISE[0] / 2)
    refused(root, "non-finite-noise", "is not finite after division", noise_scale=1e-300)


def test_the_manifest_is_read_shard_by_shard(root):
    root.put(b"".join(b'{"id": %d, "prompt": "x", "image": "a.png"}\n\n' % i for i in range(5)), "manifest.jsonl")
    shards = PairSet(root.path / "manifest.jsonl").shards(2)
    rows = [(row, json.loads(line)["id"]) for shard in shards for row, line in manifest_lines(root, shard)]
    assert rows == [(i, i) for i in range(5)]
    root.put(b'{"id": 0}\n', "manifest.jsonl")
    with pytest.raises(UserError, match="has changed since the run began: it ends at row 1"):
        list(manifest_lines(root, shards[0]))
