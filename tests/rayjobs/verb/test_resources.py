import pytest
import torch

from ortho_core.device import devices
from ortho_core.errors import UserError
from ortho_core.evaluation.features import TINY_CLIP
from rayjobs.assign.config import AssignJob
from rayjobs.cli import main
from rayjobs.evaluate.config import EvaluateJob
from rayjobs.reward.config import RewardJob
from rayjobs.train.config import TrainSettings
from rayjobs.verb.options import parse
from rayjobs.verb.resources import DeviceSettings

ASSIGN = ["--pairs", "p", "--model", "m", "--out", "o"]
here = pytest.mark.skipif(torch.cuda.is_available(), reason="is of a machine without a GPU")


def assign(*options: str) -> AssignJob:
    return parse(AssignJob, [*ASSIGN, *options], "assign").job


def test_every_verb_that_computes_says_where_in_the_same_words():
    words = DeviceSettings.model_fields["device"].description
    for job in (AssignJob, RewardJob, EvaluateJob, TrainSettings):
        assert job.model_fields["device"].description == words


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--device", "cuda:1"], "Ray decides which GPU a worker gets"),
        (["--device", "cuda", "--gpus-per-worker", "0"], "contradict each other"),
        (["--device", "mps", "--gpus-per-worker", "1"], "uses no GPU of the Ray cluster"),
        (["--device", "cpu", "--gpus-per-worker", "0.5"], "uses no GPU of the Ray cluster"),
    ],
)
def test_what_ray_cannot_give_is_refused_before_anything_is_opened(options, reason):
    with pytest.raises(UserError, match=reason) as refused:
        assign(*options)
    assert len(str(refused.value)) < 160


def test_a_command_that_works_by_itself_may_choose_among_several():
    assert assign("--device", "cuda:1", "--workers", "0").device == "cuda:1"
    one = ["--model", "m", "--reward", "clip", "--out", "o", "--prompt", "a cat"]
    assert parse(RewardJob, [*one, "--device", "cuda:1"], "reward").job.device == "cuda:1"


def test_workers_of_the_cpu_take_no_gpu_of_rays():
    assert assign("--device", "cpu").gpus() == 0
    assert assign("--device", "cuda").gpus() == 1
    assert assign("--device", "cuda", "--gpus-per-worker", "0.5").gpus() == 0.5
    assert assign("--device", "cuda").worker_device() == "cuda"
    assert assign("--device", "cpu").worker_device() == assign("--device", "cpu").own_device() == "cpu"
    assert assign("--gpus-per-worker", "0").own_device() == "cpu"


@here
@pytest.mark.parametrize("verb", ["assign", "invert", "generate", "reward"])
def test_a_gpu_that_is_not_here_is_told_in_one_short_line(verb, tiny_turbo, digits, tmp_path, capsys):
    image = str(digits / "images" / "0000.png")
    given = {
        "assign": ["--pairs", str(digits), "--workers", "0", "--report", "false"],
        "invert": ["--prompt", "a cat", "--target-image", image],
        "generate": ["--prompt", "a cat"],
        "reward": [
            "--prompt",
            "a cat",
            "--reward",
            "clip",
            "--reward-folders",
            f"clip={TINY_CLIP}",
            "--patch-size",
            "2",
        ],
    }[verb]
    for device in ("mps", "cuda:7", "gpu"):
        assert (
            main([verb, "--model", str(tiny_turbo), "--out", str(tmp_path / device), "--device", device, *given]) == 1
        )
        line = [text for text in capsys.readouterr().err.splitlines() if "--device" in text]
        assert len(line) == 1
        assert len(line[0]) < 200
        assert line[0].endswith(f"accepted: {', '.join(['auto', *devices()])}")
