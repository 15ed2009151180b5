import random

import pytest
import torch

from ortho_core.estep.config import AssignConfig
from ortho_core.estep.engine import Engine
from ortho_core.estep.engines import Engines
from ortho_core.estep.objective import Reconstruction
from ortho_core.estep.queue import Request
from ortho_core.framing.frame import Frame
from ortho_core.generators.base import at_size
from ortho_core.noise.seeded import seeded_normal

SIZES = ((24, 40), (32, 32), (40, 24))
CONFIG = AssignConfig(steps=5, patience=2, sensitivity_rank=2)


def requests_of(generator, counts, turn=0):
    """Rows of every size in mixed order, with random targets; keyed by their seeds."""
    order = [size for size, count in zip(SIZES, counts, strict=True) for _ in range(count)]
    random.Random(turn).shuffle(order)
    condition = generator.encode_prompts(["a red seven"])
    objective = Reconstruction(generator, CONFIG)
    for k, size in enumerate(order):
        seed, shape = 1000 * turn + k, at_size(generator, size).latent_shape
        target = 0.5 * seeded_normal([seed + 500], shape)
        inputs = objective.inputs(condition.framed([Frame.plain(size)]), target, None)
        yield Request(seed, seed, {name: each[0] for name, each in inputs.items()}, size=size, turn=turn)


def same(found, expected):
    assert [one.key for one in found] == [one.key for one in expected]
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.parameters, other.parameters)
        assert (one.history["total"] == other.history["total"]).all()


def by_key(found):
    return sorted(found, key=lambda one: one.key)


def test_a_row_is_found_as_among_rows_of_its_own_size_in_any_order(generator):
    objective = Reconstruction(generator, CONFIG)
    rows = list(requests_of(generator, (5, 9, 2)))
    expected = []
    for size in SIZES:
        engine = Engine(at_size(generator, size), CONFIG, 4, objective)
        expected += engine.run([row for row in rows if row.size == size])
    mixed = Engines(generator, CONFIG, 4, objective, sizes=SIZES)
    same(by_key(mixed.run(rows)), by_key(expected))
    same(by_key(mixed.run(rows[::-1])), by_key(expected))
    assert mixed.slots == 4


def test_slots_are_empty_only_at_the_end(generator):
    """Of many rows of every size, nearly all evaluations are of rows. A pause of the source loses no row."""
    config = CONFIG.model_copy(update={"patience": 0, "steps": 3})
    objective = Reconstruction(generator, config)

    def source(pauses):
        for turn in range(3):
            yield from requests_of(generator, (13, 11, 12), turn)
            yield from [None] * pauses

    for pauses in (0, 1):
        engines = Engines(generator, config, 4, objective, sizes=SIZES)
        assert len(list(engines.run(source(pauses)))) == 108
        assert engines.computed <= (1.05 + 0.1 * pauses) * 108 * 3


def test_rows_of_an_earlier_shard_are_finished_first_when_no_more_come(generator):
    objective = Reconstruction(generator, CONFIG)
    rows = [*requests_of(generator, (1, 1, 1), 0), *requests_of(generator, (2, 2, 2), 1)]
    found = [one.key for one in Engines(generator, CONFIG, 4, objective, sizes=SIZES).run(rows)]
    assert len(found) == 9
    first = max(found.index(key) for key in found if key < 1000)
    last = max(found.index(key) for key in found if key >= 1000)
    assert first < last


def test_one_size_is_one_engine_as_before(generator):
    objective = Reconstruction(generator, CONFIG)
    rows = [Request(row.key, row.seed, row.inputs) for row in requests_of(generator, (0, 6, 0))]
    engines = Engines(generator, CONFIG, 4, objective)
    alone = Engine(generator, CONFIG, 4, objective)
    assert engines.sizes == (generator.image_size,)
    same(list(engines.run(rows)), list(alone.run(rows)))
    assert engines.computed == alone.computed


def test_when_memory_runs_out_the_engine_of_that_size_has_fewer_slots(generator):
    class Scarce(Reconstruction):
        def __call__(self, noise, inputs):
            if noise.shape[2:] == (6, 10) and len(noise) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().__call__(noise, inputs)

    objective, events = Scarce(generator, CONFIG), []
    rows = list(requests_of(generator, (5, 5, 5)))
    engines = Engines(generator, CONFIG, 4, objective, events.append, sizes=SIZES)
    assert sorted(one.key for one in engines.run(rows)) == sorted(row.key for row in rows)
    assert (engines.slots, engines.of((24, 40)).slots, engines.of((32, 32)).slots) == (2, 2, 4)
    assert len(events) == 1


def test_a_failing_source_ends_the_run(generator):
    def source():
        yield from requests_of(generator, (1, 1, 1))
        raise RuntimeError("the reader broke")

    engines = Engines(generator, CONFIG, 4, Reconstruction(generator, CONFIG), sizes=SIZES)
    with pytest.raises(RuntimeError, match="the reader broke"):
        list(engines.run(source()))
