"""The choice of images for each update of a fit.

Axes: n images, G groups of an update (of one worker), R images of a group, all of one class.
"""

import numpy as np

from ortho_core.noise.seeded import noise_seed


class Groups:
    """The images of each update in each epoch: groups of R images of one class. They do not depend on the number of workers.

    An epoch leaves out the images of a class that do not fill a group, and the groups that do not fill an update.
    """

    def __init__(self, labels: np.ndarray, group_size: int, groups_per_update: int, seed: int) -> None:
        self.labels, self.group_size, self.groups_per_update, self.seed = labels, group_size, groups_per_update, seed
        self.groups = int((np.bincount(labels) // group_size).sum())
        self._kept: tuple[int, np.ndarray] | None = None

    @property
    def updates(self) -> int:
        """Updates of one epoch."""
        return self.groups // self.groups_per_update

    def share(self, epoch: int, step: int, rank: int = 0, world: int = 1) -> np.ndarray:
        """(G, R) image numbers: one worker's groups in update `step` of an epoch; all are counted from 0."""
        each = self.groups_per_update // world
        first = step * self.groups_per_update + rank * each
        return self._epoch(epoch)[first : first + each]

    def _epoch(self, epoch: int) -> np.ndarray:
        if self._kept is None or self._kept[0] != epoch:
            cut = []
            for label in np.unique(self.labels):
                members = self._stream(epoch, int(label)).permutation(np.flatnonzero(self.labels == label))
                cut.append(members[: len(members) // self.group_size * self.group_size].reshape(-1, self.group_size))
            self._kept = epoch, self._stream(epoch, -1).permutation(np.concatenate(cut))
        return self._kept[1]

    def _stream(self, *names: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=noise_seed(self.seed, "groups", *names)))
