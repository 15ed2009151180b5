"""`ortho download` against a hub on this machine."""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml

from ortho_core.generators.load import load_generator
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.generators.origin import RECORD, origin_of
from rayjobs.cli import main
from tests.ortho_core.generators.made import hub_clone
from tests.rayjobs.download.hub_server import COMMIT, serve

RANDOM = random.Random(0)
#: More than huggingface_hub reads at once, 10 MiB.
WEIGHTS = RANDOM.randbytes(12_000_000)
SMALL = RANDOM.randbytes(5000)
CONFIG = b'{"model_type": "one"}\n'
CATALOG = """
[models.one]
title = "One"
kind = "part"
folder = "one"
repository = "someone/one"
revision = "main"
files = [
  { path = "config.json" },
  { path = "sub/small+model.pth", about = 5000 },
  { path = "model.safetensors", about = 12000000 },
]
[models.one.license]
id = "mit"
commercial = "yes"
allows = "any use"

[models.two]
title = "Two, in the folder of One"
kind = "part"
folder = "one"
repository = "someone/two"
revision = "main"
files = [{ path = "vocab.txt", sha256 = "%s" }]
[models.two.license]
id = "mit"
commercial = "yes"
allows = "any use"
"""


LICENSE = """
[models.{}.license]
id = "mit"
commercial = "yes"
allows = "any use"
"""


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with serve() as (hub, url):
        one = {
            "config.json": CONFIG,
            "sub/small+model.pth": SMALL,
            "model.safetensors": WEIGHTS,
            "README.md": b"unasked",
        }
        hub.repositories = {"someone/one": one, "someone/two": {"vocab.txt": b"[PAD]\n"}}
        hub.url = url
        yield hub


@pytest.fixture
def options(tmp_path):
    catalog = tmp_path / "catalog.toml"
    catalog.write_text(CATALOG % hashlib.sha256(b"[PAD]\n").hexdigest())
    return ["--catalog", str(catalog), "--out", str(tmp_path / "models"), "--older", str(tmp_path / "older")]


def download(hub, options, *more):
    return main(["download", *options, "--mirror", hub.url, *more])


def whole(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_model_arrives_whole_verified_and_is_asked_for_once(hub, options, tmp_path, capsys):
    catalog = tmp_path / "catalog.toml"
    catalog.write_text(catalog.read_text().replace('title = "One"', 'title = "One"\nunverified = "its sizes"'))
    assert download(hub, options, "--only", "one") == 0
    files = whole(tmp_path / "models" / "one")
    record = json.loads(files.pop(RECORD))["one"]
    assert files == {"config.json": CONFIG, "sub/small+model.pth": SMALL, "model.safetensors": WEIGHTS}
    assert (record["commit"], record["revision"], record["license"]) == (COMMIT, "main", "mit")
    assert record["files"]["model.safetensors"] == {"size": 12_000_000, "sha256": hashlib.sha256(WEIGHTS).hexdigest()}
    # Files are those of the commit that was looked up, whatever happens to the branch meanwhile.
    assert all(f"/resolve/{COMMIT}/" in path for _, path, _, _ in hub.requests if "/resolve/" in path)
    said = capsys.readouterr().err
    assert "commercial use: yes" in said
    assert "download: not verified in the catalogue: its sizes\n" in said
    hub.requests.clear()
    assert download(hub, options, "--only", "one") == 0
    assert hub.requests == []
    assert "nothing to do" in capsys.readouterr().err


def test_two_models_share_a_folder_and_a_lost_file_is_fetched_alone(hub, options, tmp_path):
    assert download(hub, options, "--only", "all") == 0
    folder = tmp_path / "models" / "one"
    assert set(json.loads((folder / RECORD).read_text())) == {"one", "two"}
    assert (folder / "vocab.txt").read_bytes() == b"[PAD]\n"
    (folder / "sub" / "small+model.pth").write_bytes(b"cut short")
    hub.requests.clear()
    assert download(hub, options, "--only", "all") == 0
    assert (folder / "sub" / "small+model.pth").read_bytes() == SMALL
    assert not hub.asked("GET", hashlib.sha256(WEIGHTS).hexdigest())
    assert len(json.loads((folder / RECORD).read_text())["one"]["files"]) == 3
    assert [p.name for p in (tmp_path / "models").iterdir() if "downloading" in p.name] == []


def test_a_broken_connection_is_taken_up_where_it_broke(hub, options, tmp_path):
    hub.break_after["model.safetensors"] = 11_000_000
    assert download(hub, options, "--only", "one") == 0
    asked = hub.asked("GET", hashlib.sha256(WEIGHTS).hexdigest())
    assert [r for r, _ in asked] == [None, f"bytes={10 << 20}-"]  # it writes what it has read in portions of 10 MiB
    assert whole(tmp_path / "models" / "one")["model.safetensors"] == WEIGHTS


def test_a_killed_download_goes_on_where_it_was(hub, options, tmp_path):
    hub.stall_after["model.safetensors"] = 11_000_000
    argv = ["download", *options, "--mirror", hub.url, "--only", "one"]
    process = subprocess.Popen([sys.executable, "-m", "rayjobs", *argv], stderr=subprocess.DEVNULL)
    staging = tmp_path / "models" / ".one.downloading"
    give_up = time.monotonic() + 60
    while not any(p.stat().st_size >= 10 << 20 for p in staging.glob("model.safetensors.*.incomplete")):
        assert process.poll() is None
        assert time.monotonic() < give_up
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    hub.go_on.set()
    assert not (tmp_path / "models" / "one").exists()
    assert main(argv) == 0
    assert [r for r, _ in hub.asked("GET", hashlib.sha256(WEIGHTS).hexdigest())] == [None, f"bytes={10 << 20}-"]
    assert len(hub.asked("GET", hashlib.sha256(SMALL).hexdigest())) == 1  # that one was whole before
    assert whole(tmp_path / "models" / "one")["model.safetensors"] == WEIGHTS


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("sub/small+model.pth", SMALL[:-1] + b"?", "SHA-256"),
        ("config.json", CONFIG.replace(b"one", b"two"), "git object"),
    ],
)
def test_a_damaged_file_is_refused_and_fetched_again(name, content, what, hub, options, tmp_path, capsys):
    hub.damaged[name] = content
    assert download(hub, options, "--only", "one") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"someone/one/{name} from {hub.url} has {what}" in error
    assert "it is damaged or another file; it was removed, and the same command downloads it again" in error
    assert not (tmp_path / "models" / "one").exists()
    hub.damaged.clear()
    assert download(hub, options, "--only", "one") == 0
    assert whole(tmp_path / "models" / "one")[name] == hub.repositories["someone/one"][name]


def test_a_checksum_in_the_catalogue_holds_whatever_the_hub_says(hub, options, capsys):
    hub.repositories["someone/two"]["vocab.txt"] = b"[CLS]\n"
    assert download(hub, options, "--only", "two") == 1
    assert "has SHA-256" in capsys.readouterr().err


def test_offline_names_each_missing_file_and_its_place_and_asks_nobody(hub, options, tmp_path, capsys):
    assert main(["download", *options, "--offline"]) == 1
    told = capsys.readouterr().err
    models = tmp_path / "models"
    assert f"one lacks {models}/one/model.safetensors: model.safetensors of someone/one at main, 12.0 MB" in told
    assert f"two lacks {models}/one/vocab.txt" in told
    assert "4 files are missing" in told
    assert not models.exists()
    (models / "one" / "sub").mkdir(parents=True)
    for name, content in hub.repositories["someone/one"].items():
        (models / "one" / name).write_bytes(content)
    assert main(["download", *options, "--offline", "--only", "one"]) == 0
    assert main(["download", *options, "--offline"]) == 1
    assert "1 files are missing" in capsys.readouterr().err
    assert hub.requests == []


def test_models_of_an_older_layout_are_linked_and_the_rest_is_fetched(hub, options, tmp_path, capsys):
    older = tmp_path / "older" / "One"
    older.mkdir(parents=True)
    (older / "model.safetensors").write_bytes(WEIGHTS)
    (tmp_path / "older" / "vocab.txt").write_bytes(b"someone else's")
    assert main(["download", *options, "--list"]) == 0
    assert "missing: 2 of 3 files" in capsys.readouterr().out
    assert download(hub, options, "--only", "one") == 0
    linked = tmp_path / "models" / "one" / "model.safetensors"
    assert linked.stat().st_ino == (older / "model.safetensors").stat().st_ino
    assert whole(linked.parent)["config.json"] == CONFIG
    assert not hub.asked("GET", hashlib.sha256(WEIGHTS).hexdigest())
    (tmp_path / "older" / "two").mkdir()
    (tmp_path / "older" / "two" / "vocab.txt").write_bytes(b"another vocabulary")
    assert main(["download", *options, "--offline", "--only", "two"]) == 1
    assert "does not have the catalogue's SHA-256 and is not used" in capsys.readouterr().err
    (tmp_path / "older" / "two" / "vocab.txt").write_bytes(b"[PAD]\n")
    assert main(["download", *options, "--offline", "--only", "two"]) == 0


def test_the_token_is_the_environments_goes_to_the_hub_alone_and_is_never_told(
    hub, options, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert download(hub, options, "--only", "one") == 0
    assert {a for _, a in hub.asked("GET", "/api/")} == {"Bearer hf_secret"}
    assert {a for _, a in hub.asked("HEAD", "/resolve/")} == {"Bearer hf_secret"}
    assert {a for _, a in hub.asked("GET", "/storage/")} == {None}
    hub.gated.add("someone/two")
    assert download(hub, options, "--only", "two") == 1
    told = capsys.readouterr()
    assert f"someone/two is gated: accept its terms at {hub.url}/someone/two, then set HF_TOKEN" in told.err
    assert "(the present one is refused)" in told.err
    assert "hf_secret" not in told.err + told.out
    assert not any(b"hf_secret" in content for content in whole(tmp_path / "models").values())


def test_faults_are_told_in_one_line_and_leave_no_model(hub, options, tmp_path, capsys):
    def refusal(*more):
        assert download(hub, [*options, *more], "--only", "one") == 1
        return capsys.readouterr().err.splitlines()[-1]

    catalog = tmp_path / "catalog.toml"
    text = catalog.read_text()
    catalog.write_text(text.replace("someone/one", "someone/else"))
    assert f"{hub.url} has no repository someone/else" in refusal()
    catalog.write_text(text.replace('"main"', '"v9"'))
    assert "someone/one" in (said := refusal())
    assert "has no revision v9" in said
    catalog.write_text(text.replace("config.json", "configuration.json"))
    assert f"someone/one has no file configuration.json at {COMMIT}, which one needs" in refusal()
    catalog.write_text(text.replace("about = 5000", "size = 4000"))
    assert "has 5000 bytes; the catalogue has 4000" in refusal()
    catalog.write_text(text)
    hub.sizes["model.safetensors"] = 10**18
    assert "free, but one needs 1000000000.0 GB more" in refusal()
    hub.sizes.clear()
    hub.status = 400
    assert "answers 400" in refusal()
    hub.status = None
    assert not (tmp_path / "models" / "one").exists()
    assert main(["download", *options, "--only", "one", "--mirror", "http://127.0.0.1:9"]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("ortho download: http://127.0.0.1:9 cannot be reached")
    assert "--offline lists the files to copy by hand" in said
    assert download(hub, options, "--only", "one", "--out", str(catalog)) == 1
    assert f"--out {catalog}: " in capsys.readouterr().err
    assert main(["download", *options, "--only", "one", "--mirror", "ftp://x"]) == 1
    assert main(["download", *options]) == 1
    assert "--only is required; accepted: all, one, two" in capsys.readouterr().err


def test_a_file_of_someone_elses_is_not_replaced(hub, options, tmp_path, capsys):
    catalog = tmp_path / "catalog.toml"
    catalog.write_text(catalog.read_text().replace("about = 5000", "size = 5000"))
    mine = tmp_path / "models" / "one" / "sub" / "small+model.pth"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"my own")
    assert download(hub, options, "--only", "one") == 1
    assert f"{mine} is not the file of one, which has 5000 bytes; it is not replaced" in capsys.readouterr().err
    assert mine.read_bytes() == b"my own"
    assert hub.requests == []


def test_listing_and_dry_run_ask_nobody_and_write_nothing(hub, options, tmp_path, capsys):
    assert download(hub, options, "--list") == 0
    assert capsys.readouterr().out.splitlines()[1].split() == [
        *("one", "One", "~12.0", "MB", "mit", "(yes)", "missing:", "3", "of", "3", "files")
    ]
    assert download(hub, options, "--only", "one", "--dry-run") == 0
    said = yaml.safe_load(capsys.readouterr().out)
    assert said["bytes_to_download_about"] == 12_005_000
    assert said["models"]["one"]["files"] == ["config.json", "sub/small+model.pth", "model.safetensors"]
    assert download(hub, options, "--only", "one,two", "--print-config") == 0
    assert yaml.safe_load(capsys.readouterr().out)["only"] == ["one", "two"]
    catalog = tmp_path / "catalog.toml"
    catalog.write_text(catalog.read_text().replace('title = "One"', 'title = "One"\nunverified = "its sizes"'))
    assert download(hub, options, "--list") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "one: not verified: its sizes"
    assert download(hub, options, "--only", "one", "--dry-run") == 0
    assert yaml.safe_load(capsys.readouterr().out)["models"]["one"]["unverified"] == "its sizes"
    assert hub.requests == []
    assert not (tmp_path / "models").exists()


def test_a_downloaded_model_is_the_one_that_a_clone_has(hub, tiny_turbo, tmp_path):
    hub_clone(tiny_turbo, tmp_path / "clone")
    published = {name: content for name, content in whole(tmp_path / "clone").items() if not name.startswith(".git/")}
    hub.repositories = {"someone/turbo": published}
    needed = [name for name in whole(tiny_turbo) if name != "README.md"]
    files = ", ".join(f'{{ path = "{name}" }}' for name in needed)
    (tmp_path / "catalog.toml").write_text(
        '[models.turbo]\ntitle = "Turbo"\nkind = "part"\nfolder = "turbo"\nrepository = "someone/turbo"\n'
        f'revision = "main"\nfiles = [{files}]\n{LICENSE.format("turbo")}'
    )
    models = tmp_path / "models"
    assert download(hub, ["--catalog", str(tmp_path / "catalog.toml"), "--out", str(models), "--only", "turbo"]) == 0
    fetched, cloned = ModelFolder.open(models / "turbo"), ModelFolder.open(tmp_path / "clone")
    assert len(whole(fetched.path)) == len(needed) + 1 < len(published) / 2  # with the record of the download
    assert fetched.fingerprint == cloned.fingerprint == ModelFolder.open(tiny_turbo).fingerprint


def test_weights_become_a_pipeline_that_needs_them_no_more(hub, tiny_turbo, tmp_path, capsys):
    weights = "unet/diffusion_pytorch_model.safetensors"
    base = {name: content for name, content in whole(tiny_turbo).items() if name not in {weights, "README.md"}}
    hub.repositories = {
        "someone/base": base,
        "someone/step": {"unet.safetensors": (tiny_turbo / weights).read_bytes(), "notes.txt": b"-"},
    }
    files = ", ".join(f'{{ path = "{name}" }}' for name in base)
    (tmp_path / "catalog.toml").write_text(
        '[models.base]\ntitle = "Base"\nkind = "base"\nfolder = "base"\nrepository = "someone/base"\nrevision = "main"\n'
        f"files = [{files}]\n{LICENSE.format('base')}"
        '[models.step]\ntitle = "Step"\nkind = "generator"\nfolder = "step"\nrepository = "someone/step"\n'
        'revision = "main"\nfiles = [{ path = "unet.safetensors" }]\nrequires = ["base"]\n'
        'assemble = { how = "unet", base = "base", into = "one-step" }\n'
        'recipe = { scheduler = "LCMScheduler", prediction_type = "epsilon", timestep = 800 }\n'
        + LICENSE.format("step")
        + '[models.other]\ntitle = "Other"\nkind = "part"\nfolder = "step"\nrepository = "someone/step"\nrevision = "main"\n'
        'files = [{ path = "notes.txt" }]\n' + LICENSE.format("other")
    )
    models = tmp_path / "models"
    options = ["--catalog", str(tmp_path / "catalog.toml"), "--out", str(models), "--only", "step"]
    assert main(["download", *options, "--offline"]) == 1
    assert download(hub, options[:-2], "--only", "other") == 0
    assert download(hub, options) == 0
    assert "assembling" in capsys.readouterr().err
    generator = load_generator(ModelFolder.open(models / "one-step"))
    assert generator.step.timestep == 800
    # Of what shares the folder of its weights, nothing.
    assert origin_of(models / "one-step").name == "step"
    assert ModelFolder.open(models / "one-step").fingerprint != ModelFolder.open(tiny_turbo).fingerprint
    hub.requests.clear()
    shutil.rmtree(models / "one-step")
    (models / "one-step").mkdir()
    (models / "one-step" / "mine.txt").touch()
    assert main(["download", *options, "--offline"]) == 1
    assert "one-step exists and is not a model folder; it is not replaced: move it away" in capsys.readouterr().err
    (models / "one-step" / "mine.txt").unlink()
    assert main(["download", *options, "--offline"]) == 0  # from the files that are there
    assert load_generator(ModelFolder.open(models / "one-step")).step.timestep == 800
    shutil.rmtree(models / "base")
    shutil.rmtree(models / "step")
    assert main(["download", *options, "--list"]) == 0
    assert f"here: {models / 'one-step'}" in capsys.readouterr().out
    assert download(hub, options) == 0
    assert hub.requests == []
