"""What is planned of a search, against the bytes of real tensors while the engine runs tiny-turbo."""

import pytest

from benchmarks.memory_real import searched
from ortho_core.estep.config import AssignConfig, SearchConfig
from tests.ortho_core.memory.conftest import WITHIN


@pytest.mark.parametrize(
    ("verb", "slots", "config"),
    [
        pytest.param("assign", 6, AssignConfig(steps=3), id="latents"),
        pytest.param("reward", 4, SearchConfig(steps=3), id="reward"),
        *(
            pytest.param(*values, id=name, marks=pytest.mark.slow)
            for name, *values in (
                ("candidates", "assign", 16, AssignConfig(steps=3, candidates=2)),
                ("regions", "assign", 8, AssignConfig(steps=3, patch_size=4, regions=2)),
                ("free", "assign", 8, AssignConfig(steps=2, transform="free", prior_weight=0.1, optimizer="adamw")),
                ("pixels", "assign", 4, AssignConfig(steps=3, pixel_l1_weight=1.0)),
                ("evaluate", "evaluate", 8, AssignConfig(steps=3, patience=0)),
            )
        ),
    ],
)
def test_a_search_with_its_queue_and_caches_takes_what_was_planned(model, digits, verb, slots, config):
    search = searched(verb, model, digits, slots, config)
    assert search.ratio == pytest.approx(1, abs=WITHIN), search
