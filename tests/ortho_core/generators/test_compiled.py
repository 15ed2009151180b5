import pytest
import torch
import torch._dynamo
from torch import nn
from torch._dynamo.testing import CompileCounter

from ortho_core.errors import UserError
from ortho_core.generators.compiled import GRAPHS_A_SIZE, MOST_SIZES, allow_graphs, check_compiled


@pytest.fixture
def limit():
    """PyTorch's limit of graphs, and nothing compiled before; both as before afterwards."""
    usual = torch._dynamo.config.recompile_limit
    torch._dynamo.reset()
    yield usual
    torch._dynamo.config.recompile_limit = usual
    torch._dynamo.reset()


def graphs(sizes):
    """How many graphs are made of a network that gets maps of this number of sizes, each twice."""
    counter, network = CompileCounter(), nn.Conv2d(1, 1, 3)
    network.compile(backend=counter, dynamic=False)
    for _ in range(2):
        for side in range(8, 8 + sizes):
            network(torch.zeros(1, 1, side, 8))
    return counter.frame_count


def test_every_size_has_a_graph_once_they_are_allowed(limit):
    assert graphs(limit + 3) == limit
    torch._dynamo.reset()
    allow_graphs(limit + 3)
    assert torch._dynamo.config.recompile_limit == GRAPHS_A_SIZE * (limit + 3)
    assert graphs(limit + 3) == limit + 3


def test_a_limit_is_not_lowered(limit):
    allow_graphs(1)
    assert torch._dynamo.config.recompile_limit == limit


def test_too_many_sizes_to_compile_for_are_refused():
    check_compiled(True, MOST_SIZES)
    check_compiled(False, MOST_SIZES + 1)
    with pytest.raises(
        UserError, match=r"--train\.compile makes a graph for each of the 33 sizes of images; accepted: at most 32"
    ):
        check_compiled(True, MOST_SIZES + 1, "train.")
