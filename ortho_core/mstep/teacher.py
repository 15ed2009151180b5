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
    """f_0, the model that the preserve terms hold to."""

    def standing_in(self, generator: OneStepGenerator) -> AbstractContextManager[None]:
        """Inside, the generator computes with f_0."""
        ...


class FrozenTeacher:
    """f_0 as a network of its own, which never trains."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network.requires_grad_(False).eval()

    @staticmethod
    def copy_of(network: nn.Module) -> "FrozenTeacher":
        """Of the weights as they are now."""
        return FrozenTeacher(copy.deepcopy(network))

    def standing_in(self, generator: OneStepGenerator) -> AbstractContextManager[None]:
        return using(generator, self.network)


class AdapterTeacher:
    """f_0 as the network that trains, with its LoRA adapter off or as it was at the start: no second copy of the weights."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    @contextmanager
    def standing_in(self, generator: OneStepGenerator) -> Iterator[None]:
        with using(generator, self.network), teacher_adapter(self.network):
            yield


def teacher_of(network: nn.Module) -> Teacher:
    """f_0 is the network as it is now: of an adapter a frozen copy of it alone, else a frozen copy of the network."""
    if not has_lora(network):
        return FrozenTeacher.copy_of(network)
    keep_as_teacher(network)
    return AdapterTeacher(network)


@contextmanager
def using(generator: OneStepGenerator, module: nn.Module) -> Iterator[None]:
    """Let `module` stand in for the generator's trainable network for a while."""
    usual = generator.trainable
    generator.trainable = module
    try:
        yield
    finally:
        generator.trainable = usual
