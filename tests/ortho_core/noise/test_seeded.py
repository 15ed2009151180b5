import numpy as np
import torch
from scipy import stats

from ortho_core.noise.seeded import noise_seed, seeded_normal


def test_a_row_depends_on_its_seed_alone():
    together = seeded_normal([5, 6, 7], (4, 8, 8))
    assert torch.equal(together[1:2], seeded_normal([6], (4, 8, 8)))
    assert torch.equal(together[[2, 0]], seeded_normal([7, 5], (4, 8, 8)))


def test_it_is_standard_normal():
    values = seeded_normal(list(range(64)), (4, 16, 16)).flatten().numpy()
    assert stats.kstest(values, "norm").pvalue > 1e-3


def test_names_separate_seeds_and_fit_the_record():
    seeds = {noise_seed(run, name) for run in range(20) for name in ("000001_a", "000002_a", "1", "11")}
    assert len(seeds) == 80
    assert noise_seed(1, "1") != noise_seed(11, "")
    assert max(seeds) <= np.iinfo(np.int64).max
