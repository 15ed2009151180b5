"""What every test shares: shapes checked while the numerics run, one Ray session, the shipped model and pairs."""

import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

# Ray writes a token into HOME and sockets into its temporary folder; neither should be the user's.
SCRATCH = Path(tempfile.mkdtemp(prefix="ortho-"))
os.environ |= {"HOME": str(SCRATCH), "RAY_TMPDIR": str(SCRATCH), "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
os.environ |= {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.3", "RAY_prestart_worker_first_driver": "0"}
os.environ.pop("RAY_ADDRESS", None)

from jaxtyping import install_import_hook  # noqa: E402

import tests.shapes  # noqa: E402, F401

install_import_hook(["ortho_core"], "tests.shapes.check")

import pytest  # noqa: E402
import torch  # noqa: E402

from tests.disk import Disk  # noqa: E402

torch.set_num_threads(1)
ROOT = Path(__file__).resolve().parents[1]


FORK_SERVER = ExitStack()


def pytest_sessionfinish() -> None:
    stop_ray()
    FORK_SERVER.close()
    shutil.rmtree(SCRATCH, ignore_errors=True)


@pytest.fixture(scope="session")
def tiny_turbo() -> Path:
    return ROOT / "models" / "tiny-turbo"


@pytest.fixture(scope="session")
def digits() -> Path:
    return ROOT / "examples" / "digits"


@pytest.fixture(scope="session")
def generator(tiny_turbo):
    from ortho_core.generators.load import load_generator
    from ortho_core.generators.model_folder import ModelFolder

    return load_generator(ModelFolder.open(tiny_turbo))


@pytest.fixture(scope="session")
def sana_sprint(tmp_path_factory) -> Path:
    from benchmarks.flow_models import save_sana_sprint

    return save_sana_sprint(tmp_path_factory.mktemp("models") / "tiny-sana-sprint")


@pytest.fixture(scope="session")
def flux(tiny_turbo, tmp_path_factory) -> Path:
    from benchmarks.flow_models import save_flux

    return save_flux(tiny_turbo, tmp_path_factory.mktemp("models") / "tiny-flux")


@pytest.fixture(scope="session")
def batch(generator, digits):
    """Eight example pairs: condition, images, target latents."""
    from ortho_core.pairs.decoding import to_images
    from ortho_core.pairs.pair_set import PairSet

    pairs = PairSet(digits)
    rows = list(pairs.read(pairs.shards(8)[0]))
    images = to_images(pairs.images(rows, generator.image_size))
    with torch.no_grad():
        return generator.encode_prompts([row.prompt for row in rows]), images, generator.encode_images(images)


@pytest.fixture(scope="session")
def left_aside() -> Callable[[Path], Path]:
    """Leaves beside a path what a process that died there leaves, and returns it."""
    program = (
        "import sys\nfrom pathlib import Path\nfrom ortho_core.storage.aside import aside\n"
        "copy = aside(Path(sys.argv[1]))\ncopy.write_bytes(b'half')\nprint(copy)"
    )

    def leave(path: Path) -> Path:
        done = subprocess.run([sys.executable, "-c", program, str(path)], check=True, capture_output=True, text=True)
        return Path(done.stdout.strip())

    return leave


@pytest.fixture
def small_pairs(digits, tmp_path) -> Path:
    """A pair set of 24 rows in a folder of its own."""
    return copy_pairs(digits, tmp_path / "pairs", 24)


@cache
def forked_workers() -> dict[str, str]:
    """The runtime environment in which Ray's workers are forks, as in a Ray that a verb starts; one server for all tests."""
    from rayjobs.processes.forks import fork_server

    return FORK_SERVER.enter_context(fork_server())


def connect_ray(runtime_env: dict[str, str] | None = None, **options: Any) -> None:
    """`ray.init`, as quiet as a verb's own."""
    import logging

    import ray

    workers = forked_workers() if runtime_env is None else runtime_env
    ray.init(log_to_driver=False, logging_level=logging.ERROR, runtime_env=workers, **options)


def start_ray() -> None:
    """One Ray with more logical CPUs than the machine has; what matters here is order and failure, not speed."""
    import ray

    if not ray.is_initialized():
        connect_ray(num_cpus=4, include_dashboard=False)


def stop_ray() -> None:
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        sys.modules["ray"].shutdown()


@pytest.fixture(scope="module")
def ray_session() -> None:
    """The Ray that all tests share. It stays until the tests end, or until one needs a Ray of its own."""
    start_ray()


@pytest.fixture(scope="module")
def no_ray() -> Iterator[None]:
    """For a module that starts a Ray of its own, and stops it."""
    stop_ray()
    yield
    stop_ray()


@pytest.fixture(scope="session")
def assigned(tiny_turbo, digits, tmp_path_factory) -> tuple[Path, Path]:
    """Twenty-four pairs, and their assignments, made in this process."""
    from rayjobs.assign.config import AssignJob
    from rayjobs.assign.job import run

    folder = tmp_path_factory.mktemp("assigned")
    pairs, out = copy_pairs(digits, folder / "pairs", 24), folder / "out"
    job = AssignJob(pairs=pairs, model=tiny_turbo, out=out, steps=4, rows_per_shard=8, slots=8, workers=0)
    assert run(job) == 0
    return pairs, out


#: Shapes (width, height) of the pictures of `mixed`, in turn.
SHAPES = ((48, 48), (60, 36), (36, 60), (50, 44), (36, 60))
#: Sizes of images for these.
BUCKETS = "24x40,32x32,40x24"


def mixed_pairs(digits: Path, folder: Path, rows: int) -> Path:
    """Digits on canvases of several shapes."""
    from PIL import Image

    folder = copy_pairs(digits, folder, rows)
    for number, file in enumerate(sorted((folder / "images").iterdir())):
        with Image.open(file) as opened:
            digit = opened.convert("RGB")
        width, height = SHAPES[number % len(SHAPES)]
        side = min(width, height)
        canvas = Image.new("RGB", (width, height), digit.getpixel((0, 0)))
        canvas.paste(digit.resize((side, side)), ((width - side) // 2, (height - side) // 2))
        canvas.save(file)
    return folder


@pytest.fixture(scope="session")
def assigned_mixed(tiny_turbo, digits, tmp_path_factory) -> tuple[Path, Path]:
    """Twenty-two pairs of several shapes, and their assignments at three sizes, made in this process."""
    from rayjobs.assign.config import AssignJob
    from rayjobs.assign.job import run

    folder = tmp_path_factory.mktemp("mixed")
    pairs, out = mixed_pairs(digits, folder / "pairs", 22), folder / "out"
    job = AssignJob(
        pairs=pairs,
        model=tiny_turbo,
        out=out,
        steps=2,
        rows_per_shard=11,
        slots=4,
        workers=0,
        buckets=BUCKETS,
        report=False,
    )
    assert run(job) == 0
    return pairs, out


def copy_pairs(digits: Path, folder: Path, rows: int) -> Path:
    (folder / "images").mkdir(parents=True)
    lines = (digits / "pairs.jsonl").read_text().splitlines(keepends=True)[:rows]
    (folder / "pairs.jsonl").write_text("".join(lines))
    for i in range(rows):
        shutil.copy(digits / "images" / f"{i:04d}.png", folder / "images")
    return folder


@pytest.fixture(scope="session")
def disk() -> Disk:
    """Where a test says so, and for as long, writing fails."""
    return Disk()


@pytest.fixture(scope="session")
def s3() -> Iterator[Callable[[], str]]:
    """Makes buckets, each empty and at its own URL, on an S3 server of this process that speaks HTTP."""
    import logging

    import s3fs
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", port=0)
    server.start()
    answer, turn = server._server.app, threading.Lock()

    def one_at_a_time(environ: Any, start_response: Any) -> Any:
        """S3 decides a conditional write at once; moto looks first and writes afterwards."""
        with turn:
            return answer(environ, start_response)

    server._server.app = one_at_a_time
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for name, value in (("ACCESS_KEY_ID", "a"), ("SECRET_ACCESS_KEY", "b"), ("DEFAULT_REGION", "us-east-1")):
            patch.setenv(f"AWS_{name}", value)
        s3fs.S3FileSystem.clear_instance_cache()
        numbers = itertools.count(1)

        def bucket() -> str:
            name = f"bucket-{next(numbers)}"
            s3fs.S3FileSystem().mkdir(name)
            return f"s3://{name}"

        yield bucket
        s3fs.S3FileSystem.clear_instance_cache()
    server.stop()
