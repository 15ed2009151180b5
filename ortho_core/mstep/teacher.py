"""The teacher f_0 of the preserve loss: the frozen model that the run started from."""

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, runtime_checkable

from torch import nn

from ortho_core.generators.lora import has_lora, keep_as_teacher, teacher_adapter
from ortho_core.generators.protocol import OneStepGenerator


@runtime_checkable
class Teacher(Protocol):
    """f_0, the model whose outputs the preserve terms preserve."""

    def standing_in(self, generator: OneStepGenerator) -> AbstractContextManager[None]:
        """A context in which the generator computes with f_0."""
        ...


class FrozenTeacher:
    """f_0 as a separate network that never trains."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network.requires_grad_(False).eval()

    @staticmethod
    def copy_of(network: nn.Module) -> "FrozenTeacher":
        """A copy with the current weights."""
        return FrozenTeacher(copy.deepcopy(network))

    def standing_in(self, generator: OneStepGenerator) -> AbstractContextManager[None]:
        return using(generator, self.network)


class AdapterTeacher:
    """f_0 as the trained network with its LoRA adapter off, or with the adapter from the start: no second copy of the weights."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    @contextmanager
    def standing_in(self, generator: OneStepGenerator) -> Iterator[None]:
        with using(generator, self.network), teacher_adapter(self.network):
            yield


def teacher_of(network: nn.Module) -> Teacher:
    """The current network as f_0: a frozen copy of the LoRA adapter if there is one, else a frozen copy of the network."""
    if not has_lora(network):
        return FrozenTeacher.copy_of(network)
    keep_as_teacher(network)
    return AdapterTeacher(network)


@contextmanager
def using(generator: OneStepGenerator, module: nn.Module) -> Iterator[None]:
    """A context in which `module` replaces the generator's trainable network."""
    usual = generator.trainable
    generator.trainable = module
    try:
        yield
    finally:
        generator.trainable = usual
