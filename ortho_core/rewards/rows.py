"""Prompts as rows of a shard, for the reward search."""

from collections.abc import Container, Iterator, Sequence

import torch
from torch import Tensor

from ortho_core.at_once import AtOnce
from ortho_core.estep.engine import Found
from ortho_core.estep.rows import ROWS_ENCODED_TOGETHER, Batch
from ortho_core.generators.prompt_cache import PromptCache, TextCache
from ortho_core.pairs.decoding import usable_rows
from ortho_core.pairs.pair_set import PairSet
from ortho_core.pairs.rows import Failure, Pair, Shard
from ortho_core.rewards.objective import RewardObjective


class PromptRows:
    """Prompts whose reward is maximised. Their records store the latents at the assigned noise, as targets for training."""

    def __init__(self, objective: RewardObjective, prompts: PromptCache, rows: PairSet) -> None:
        self.objective = objective
        self.prompts, self.rows = prompts, rows
        self.encoded = TextCache(objective.rewards.encode_prompts)
        self.encoded_reported = TextCache(objective.reported.encode_prompts)
        self.at_once = AtOnce(ROWS_ENCODED_TOGETHER)
        self.waited = 0.0

    def batches(self, shard: Shard, failures: list[Failure], only: Container[int] | None) -> Iterator[Batch]:
        rows = list(usable_rows(self.rows, shard, failures, only))
        for start in range(0, len(rows), ROWS_ENCODED_TOGETHER):
            batch = rows[start : start + ROWS_ENCODED_TOGETHER]
            texts = [pair.prompt for pair in batch]
            inputs = self.objective.inputs(self.prompts(texts), self.encoded(texts))
            yield Batch(batch, [None] * len(batch), inputs)

    def columns(
        self, found: Sequence[Found], pairs: Sequence[Pair], kept: Sequence[object], noise: Tensor, base: Tensor
    ) -> Iterator[dict[str, object]]:
        texts = [pair.prompt for pair in pairs]
        for start in range(0, len(texts), ROWS_ENCODED_TOGETHER):
            part = slice(start, start + ROWS_ENCODED_TOGETHER)
            before, _ = self._scores(base[part], texts[part])
            after, latents = self._scores(noise[part], texts[part])
            for i, latent in enumerate(latents):
                yield {
                    "initial_rewards": [(name, float(values[i])) for name, values in before.items()],
                    "rewards": [(name, float(values[i])) for name, values in after.items()],
                    "target_latent": latent.flatten().numpy(),
                }

    @torch.no_grad()
    def _scores(self, noise: Tensor, texts: list[str]) -> tuple[dict[str, Tensor], Tensor]:
        """Every reward of the images, clamped to [0, 1], and their latents; on the CPU."""
        generator, missing = self.objective.generator, ROWS_ENCODED_TOGETHER - len(texts)
        noise = torch.cat([noise, noise[-1:].expand(missing, -1, -1, -1)]).to(generator.device)
        filled = texts + texts[-1:] * missing
        condition, encoded = self.prompts(filled), self.encoded_reported(filled)

        def scored(part: slice) -> tuple[Tensor, dict[str, Tensor]]:
            latents = generator.denoise(noise[part], condition[part])
            images = generator.decode(latents).clamp(0, 1)
            scores = self.objective.reported.scores(images, {name: rows[part] for name, rows in encoded.items()})
            return latents.float().cpu(), {name: values.float().cpu() for name, values in scores.items()}

        latents, scores = zip(*self.at_once(len(noise), scored), strict=True)
        rewards = {name: torch.cat([part[name] for part in scores]) for name in scores[0]}
        return rewards, torch.cat(latents)[: len(texts)]

    def killed(self) -> int:
        return 0
