"""How many images fit on a device side by side: measured, not guessed."""

import torch

from ortho_core.estep.config import SearchConfig
from ortho_core.estep.engine import Engine
from ortho_core.estep.objective import Objective
from ortho_core.estep.queue import requests_of
from ortho_core.generators.protocol import OneStepGenerator

#: Without a GPU, more slots than this gain little and take memory that other processes want.
CPU_SLOTS = 16
#: Beyond this the device is busy, and a shard's last images would leave most of the slots empty.
MOST_SLOTS = 64


def slots_that_fit(generator: OneStepGenerator, config: SearchConfig, objective: Objective, share: float = 0.85) -> int:
    """As many slots as take `share` of the GPU memory that is free, a power of two or thrice one; at least 1.

    Two and four images are evaluated for two steps; the difference of the peaks is what two images take.
    """
    if generator.device.type != "cuda":
        return CPU_SLOTS
    peaks = [_peak(generator, config, objective, count) for count in (2, 4)]
    each = max(1, (peaks[1] - peaks[0]) // 2)
    fixed = max(0, peaks[0] - 2 * each)
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(generator.device)
    return round_down(int((share * free - fixed) // each))


def _peak(generator: OneStepGenerator, config: SearchConfig, objective: Objective, count: int) -> int:
    """Bytes that `count` images need on top of the weights."""
    inputs = objective.blank_inputs(count)
    requests = requests_of(range(count), range(count), inputs)
    torch.cuda.synchronize(generator.device)
    before = torch.cuda.memory_allocated(generator.device)
    torch.cuda.reset_peak_memory_stats(generator.device)
    for _ in Engine(generator, config.brief(2), count, objective).run(requests):
        pass
    return torch.cuda.max_memory_allocated(generator.device) - before


def round_down(slots: int) -> int:
    """1, 2, 3, 4, 6, 8, 12, ...: near enough to the limit, and the same on machines whose free memory differs a little."""
    best = 1
    for power in range(7):
        for value in (2**power, 3 * 2**power):
            if best < value <= min(slots, MOST_SLOTS):
                best = value
    return best
