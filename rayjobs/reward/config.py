"""The options of `ortho reward`."""

from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator

from ortho_core.estep.config import SearchConfig
from ortho_core.generators.lora_config import LoraList
from ortho_core.marks import conduct, decides, resolved
from ortho_core.storage.location import LocalPath, Location, ModelPath, OutputLocation
from rayjobs.pool.config import PoolSettings
from rayjobs.verb.resources import labels


class RewardJob(SearchConfig, PoolSettings):
    """Find the noise whose image scores highest, for one prompt or a file of them."""

    model: ModelPath = resolved(description="model: a diffusers folder, a LoRA folder, or a single-file checkpoint")
    lora: LoraList = resolved(
        (), description="LoRAs to add to the model's weights: FILE[:WEIGHT],FILE[:WEIGHT], of diffusers or kohya format"
    )
    reward: str = resolved(
        description="clip, aesthetic, hybrid, pickscore, imagereward, hpsv2, or a sum: name:weight,name:weight"
    )
    out: OutputLocation = conduct(description="folder (or, with --prompts, URL); the same command again resumes")
    prompt: str | None = resolved(None, description="one prompt: worked on in this process, with pictures and curves")
    prompts: Location | None = resolved(
        None, description="prompts: .txt (one a line), .jsonl, Parquet or a pair set; path or URL"
    )
    report_rewards: str | None = decides(
        None, description="rewards that are told of before and after and not optimised: name,name"
    )
    rewards_root: LocalPath = resolved(
        Path("models"), description="folder that the folders of the rewards' weights are in"
    )
    reward_folders: Annotated[dict[str, LocalPath] | None, BeforeValidator(labels)] = resolved(
        None, description="folders of single rewards that are elsewhere: NAME=FOLDER,NAME=FOLDER"
    )
    prompt_field: str | None = resolved(None, min_length=1, description="field that holds the prompt (none: prompt)")
    id_field: str | None = resolved(None, min_length=1, description="field that holds a row's own unique id")
    retry_failures: bool = conduct(False, description="besides what is not done yet, try the quarantined rows again")
    save_steps: bool = conduct(False, description="with --prompt: a picture of every evaluation")
    patch_size: int = decides(8, ge=1, description="side p of the latent patches that one orthogonal matrix rotates")
    steps: int = decides(20, ge=1, description="evaluations (generator and rewards, forward + backward) per prompt")

    @property
    def most_workers(self) -> int:
        """None for one prompt."""
        return 0 if self.prompt is not None else super().most_workers

    def folders(self) -> dict[str, Path]:
        """Where the rewards' weights are: each by its name, and by "" the root of those that are not named."""
        return {"": self.rewards_root, **(self.reward_folders or {})}
