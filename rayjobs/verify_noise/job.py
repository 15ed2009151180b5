"""`ortho verify-noise`: shows that rotated noise stays Gaussian if the rotation does not depend on it. No model, no cluster."""

import json
from dataclasses import asdict
from typing import Any

import torch

from ortho_core.errors import UserError
from ortho_core.noise.gaussianity import departures, plot_statistics, random_rotation, verdict
from ortho_core.noise.rotation import block_dimension
from ortho_core.noise.seeded import noise_seed, seeded_normal
from rayjobs.verb.console import say
from rayjobs.verb.plan import replace_text
from rayjobs.verify_noise.config import VerifyNoiseJob


def describe(job: VerifyNoiseJob) -> dict[str, Any]:
    """What a dry run prints."""
    d = block_dimension((job.channels, job.size, job.size), job.patch_size)
    return {"maps": job.num_samples, "patches": job.num_samples * (job.size // job.patch_size) ** 2, "dimension": d}


def run(job: VerifyNoiseJob) -> int:
    """Rotate the noise, measure it, draw the figures. Returns 0, or 1 if the entries or the patch norms fail their test."""
    shape = (job.channels, job.size, job.size)
    block_dimension(shape, job.patch_size)
    try:
        job.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {job.out}: {error.strerror}") from error
    stream = torch.Generator().manual_seed(job.seed)
    base, rotated = [], []
    for start in range(0, job.num_samples, job.batch_size):
        count = min(job.batch_size, job.num_samples - start)
        noise = seeded_normal([noise_seed(job.seed, "verify", start + i) for i in range(count)], shape)
        base.append(noise)
        rotated.append(random_rotation(noise, job.patch_size, stream).float())
    result = {}
    passed = True
    for name, maps in (("base", torch.cat(base)), ("rotated", torch.cat(rotated))):
        statistics = plot_statistics(maps, job.patch_size, f"{name} noise", job.out / f"{name}.png")
        for title, test in (("marginal", statistics.marginal), ("patch_norm", statistics.patch_norm)):
            # One sample in twenty of true Gaussian noise exceeds the 95 % quantile. Almost none exceeds twice the quantile.
            sound = test.departure < 2
            passed &= sound
            distance = f"KS distance {test.ks:.5f}, 95 % of true samples under {test.null_95:.5f}"
            say(f"{name:8} {title:11} {distance}: {'Gaussian' if sound else 'NOT Gaussian'}")
        result[name] = {**asdict(statistics), "departures": departures(statistics)}
        say(f"{name:8} {verdict(statistics)}")
    replace_text(job.out / "verify_noise.json", json.dumps(result, indent=1) + "\n")
    return 0 if passed else 1
