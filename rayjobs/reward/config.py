"""The options of `ortho reward`."""

from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator

from ortho_core.estep.config import SearchConfig
from ortho_core.generators.lora_config import LoraList
from ortho_core.marks import conduct, decides, resolved
from ortho_core.storage.location import LocalPath, Location, ModelPath, OutputLocation
from rayjobs.pool.config import PoolSettings
from rayjobs.verb.image_size import SizeSettings
from rayjobs.verb.resources import labels


class RewardJob(SearchConfig, PoolSettings, SizeSettings):
    """Search the noise whose image has the highest reward, for one prompt or a file of prompts."""

    model: ModelPath = resolved(description="model: a diffusers folder, a LoRA folder, or a single-file checkpoint")
    lora: LoraList = resolved(
        (), description="LoRAs to add to the model's weights: FILE[:WEIGHT],FILE[:WEIGHT], of diffusers or kohya format"
    )
    reward: str = resolved(
        description="clip, aesthetic, hybrid, pickscore, imagereward, hpsv2, or a weighted sum: name:weight,name:weight"
    )
    out: OutputLocation = conduct(description="folder (or, with --prompts, URL); the same command again resumes")
    prompt: str | None = resolved(None, description="one prompt, searched in this process, with pictures and curves")
    prompts: Location | None = resolved(
        None, description="file of prompts: .txt (one per line), .jsonl, Parquet or a pair set; path or URL"
    )
    report_rewards: str | None = decides(
        None, description="rewards that are measured before and after, but not optimised: name,name"
    )
    rewards_root: LocalPath = resolved(Path("models"), description="folder with the model folders of the rewards")
    reward_folders: Annotated[dict[str, LocalPath] | None, BeforeValidator(labels)] = resolved(
        None, description="folders of rewards that are not in --rewards-root: NAME=FOLDER,NAME=FOLDER"
    )
    prompt_field: str | None = resolved(None, min_length=1, description="field with the prompt (none: prompt)")
    id_field: str | None = resolved(None, min_length=1, description="field with the unique id of a row")
    retry_failures: bool = conduct(False, description="also try the quarantined rows again")
    save_steps: bool = conduct(False, description="with --prompt: save a picture of every evaluation")
    patch_size: int = decides(8, ge=1, description="side p of the latent patches that one orthogonal matrix rotates")
    steps: int = decides(20, ge=1, description="evaluations (generator and rewards, forward + backward) per prompt")

    @property
    def most_workers(self) -> int:
        """The most workers of the pool; 0 for one prompt."""
        return 0 if self.prompt is not None else super().most_workers

    def folders(self) -> dict[str, Path]:
        """Folders of the rewards' weights by name; under "" the root of all that are not named."""
        return {"": self.rewards_root, **(self.reward_folders or {})}
