"""`torch.compile` of a network that gets inputs of several shapes: one graph for each, and how many there may be."""

from ortho_core.errors import UserError

#: The most sizes of images of a compiled network. Each is compiled for itself, which takes a minute or more on a GPU.
MOST_SIZES = 32
#: Graphs of one size: with and without gradients, in training and in evaluation mode.
GRAPHS_A_SIZE = 4


def check_compiled(compiles: bool, sizes: int, group: str = "") -> None:
    """Raises UserError if a network is to be compiled for more sizes of images than are accepted."""
    if compiles and sizes > MOST_SIZES:
        raise UserError(
            f"--{group}compile makes a graph for each of the {sizes} sizes of images; accepted: at most {MOST_SIZES} sizes, or "
            "leave it out"
        )


def allow_graphs(sizes: int) -> None:
    """Let PyTorch keep the graphs of this number of sizes; beyond its limit it would run the network uncompiled, in silence."""
    import torch._dynamo

    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, GRAPHS_A_SIZE * sizes)
