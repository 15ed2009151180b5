"""The table of verbs. A verb's modules are imported only when they are needed."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from ortho_core.generators.imports import quick_imports

Run = Callable[[Any], int]
Describe = Callable[[Any], Mapping[str, object]]
Ending = Callable[[Any, int], list[str]]


@dataclass(frozen=True)
class Verb:
    """The module with a verb's `run` and `describe`, the class of its options, and its purpose in one line.

    For help and for refused options only the options are imported, without PyTorch and Ray, which take long to import.
    """

    module: str
    job: str
    help: str
    ray: bool = False  # whether it may start a Ray
    #: The module of the options, if it is neither `config` beside `job` nor the verb's only module.
    options: str | None = None
    #: Options of a complete command, for the help.
    example: str = ""
    #: Options that users often set, without the required ones; empty: the help shows all options.
    usual: tuple[str, ...] = ()

    def model(self) -> type[BaseModel]:
        """The class of the options."""
        room, _, name = self.module.rpartition(".")
        options = self.options or (f"{room}.config" if name == "job" else self.module)
        return getattr(importlib.import_module(options), self.job)

    def load(self) -> tuple[Run, Describe]:
        """The functions `run`, which runs a job, and `describe`, which describes it for a dry run."""
        with quick_imports():
            module = importlib.import_module(self.module)
        return module.run, module.describe

    def ending(self, job: BaseModel, code: int) -> list[str]:
        """The command's last lines after a run with this exit code; none unless the code is 0 or 3 and the verb has some."""
        lines: Ending | None = getattr(importlib.import_module(self.module), "ending", None)
        return [] if lines is None or code not in (0, 3) else lines(job, code)


VERBS = {
    "assign": Verb(
        "rayjobs.assign.job",
        "AssignJob",
        "E-step: find the noise of each image of a pair set",
        ray=True,
        example="--pairs my-photos --model models/sdxl-turbo --out runs/assigned",
        usual=(
            "steps",
            "patch_size",
            "slots",
            "workers",
            "dtype",
            "caption",
            "prompt",
            "store_latents",
            "seed",
            "retry_failures",
        ),
    ),
    "look": Verb(
        "rayjobs.look.job",
        "LookJob",
        "inspect a pair set before training: pictures, captions, sizes",
        example="my-photos",
        usual=("out", "rows", "size", "caption", "prompt", "layout", "split", "part"),
    ),
    "invert": Verb(
        "rayjobs.invert.job",
        "InvertJob",
        "E-step for one image, with pictures and curves",
        example='--prompt "a photo of my cat" --target-image cat.jpg --model models/sdxl-turbo --out runs/cat',
        usual=("steps", "patch_size", "optimizer", "pixel_l1_weight", "dtype", "device", "seed"),
    ),
    "train": Verb(
        "rayjobs.train.job",
        "TrainJob",
        "M-step: fine-tune on matched (or random) noise",
        ray=True,
        example="--model models/sdxl-turbo --assignments runs/assigned --out runs/trained --lora-rank 16",
        usual=(
            *("assignments", "pairs", "noise", "epochs", "batch_size", "lr", "lora_rank", "preserve_latent_weight"),
            *(
                "preserve_prompts",
                "mixed_precision",
                "gradient_accumulation_steps",
                "gradient_checkpointing",
                "num_workers",
            ),
        ),
    ),
    "em": Verb(
        "rayjobs.em.job",
        "EmJob",
        "alternate E-step and M-step, evaluate, report",
        ray=True,
        example="--pairs my-photos --model models/sdxl-turbo --work-dir runs/my-photos",
        usual=(
            *("cycles", "heldout", "baseline", "caption", "prompt", "assign.steps", "assign.workers", "train.epochs"),
            *("train.batch_size", "train.lr", "train.lora_rank", "train.preserve_latent_weight"),
        ),
    ),
    "sweep": Verb(
        "rayjobs.sweep.job",
        "SweepJob",
        "try settings: target fit against drift, with the Pareto front",
        ray=True,
        example="--pairs my-photos --model models/sdxl-turbo --work-dir runs/sweep --sweep.train.lr 1e-5,1e-4",
        usual=("sweep", "metric", "max_drift", "search", "samples", "max_concurrent", "cycles", "heldout"),
    ),
    "evaluate": Verb(
        "rayjobs.evaluate.job",
        "EvaluateJob",
        "held-out metrics of one or more models",
        ray=True,
        example="--model base=models/sdxl-turbo,mine=runs/trained/checkpoint-final --pairs heldout --out runs/evaluated",
        usual=("rows", "steps", "features", "rewards", "lpips", "trained_on", "workers", "dtype", "batch_size"),
    ),
    "reward": Verb(
        "rayjobs.reward.job",
        "RewardJob",
        "find the noise whose image scores highest, for one prompt or many",
        ray=True,
        example='--model models/sdxl-turbo --reward clip --prompt "a red fox in the snow" --out runs/fox',
        usual=(
            "prompt",
            "prompts",
            "report_rewards",
            "rewards_root",
            "steps",
            "patch_size",
            "dtype",
            "seed",
            "workers",
        ),
    ),
    "train-gan": Verb(
        "rayjobs.train_gan.job",
        "TrainGanJob",
        "train a small one-step generator on labelled images such as MNIST",
        ray=True,
        example="--data mnist --root data/mnist --out runs/mnist",
        usual=("epochs", "batch_size", "lr", "widths", "image_size", "num_workers", "seed"),
    ),
    "generate": Verb(
        "rayjobs.generate.job",
        "GenerateJob",
        "make images with a model",
        example='--model models/sdxl-turbo --prompt "a red fox in the snow" --out runs/foxes',
    ),
    "convert": Verb(
        "rayjobs.convert.job",
        "ConvertJob",
        "write a model as one file for ComfyUI, Forge and A1111, or as a folder",
        example="runs/trained/checkpoint-final",
    ),
    "export": Verb(
        "rayjobs.assign.export_reference",
        "ExportJob",
        "write assignments as the reference's folder of noise files",
        options="rayjobs.assign.reference_config",
        example="--assignments runs/assigned --model models/sdxl-turbo --out runs/noises",
    ),
    "import": Verb(
        "rayjobs.assign.import_reference",
        "ImportJob",
        "read the reference's folder of noise files as assignments",
        options="rayjobs.assign.reference_config",
        example="--samples noises --pairs my-photos --model models/sdxl-turbo --out runs/assigned",
        usual=("pairs", "noise_scale", "prompt_field", "image_field", "id_field"),
    ),
    "submit": Verb(
        "rayjobs.submit",
        "SubmitJob",
        "run a verb on a cluster, and print its log",
        example="--address http://HEAD:8265 em --pairs s3://my/pairs --model /data/sdxl-turbo --work-dir /data/em",
    ),
    "download": Verb(
        "rayjobs.download.job",
        "DownloadJob",
        "download models of the catalogue into models/",
        example="--only sdxl-turbo",
    ),
    "verify-noise": Verb(
        "rayjobs.verify_noise.job",
        "VerifyNoiseJob",
        "measure the Gaussian statistics of rotated noise",
        example="--out runs/noise",
    ),
}
