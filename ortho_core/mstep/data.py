"""The M-step's data: the rows of each update, read on the CPU, independent of the number of workers.

Axes: B rows of one worker's share of an update, P of its preserve rows, C × H × W noise, c × h × w latents, Y × X × 3 images.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ortho_core.device import to_device
from ortho_core.errors import UserError
from ortho_core.framing.frame import Frame
from ortho_core.framing.framing import Framing
from ortho_core.generators.prompt_cache import PromptCache
from ortho_core.generators.protocol import OneStepGenerator
from ortho_core.mstep.config import NoiseKind
from ortho_core.mstep.loss import SftBatch
from ortho_core.mstep.row_order import Order
from ortho_core.mstep.share import ReadRows, Share, UpdatePlace
from ortho_core.mstep.size_order import SizeOrder
from ortho_core.mstep.unassigned import DECODING_THREADS, UnassignedRows
from ortho_core.noise.seeded import noise_seed, seeded_normal
from ortho_core.pairs.images import decode_framed
from ortho_core.pairs.pair_set import PairSet
from ortho_core.pairs.rows import row_name
from ortho_core.records.assignments import Assignments, frame_of, shape_at
from ortho_core.records.parts import FRAME_COLUMNS
from ortho_core.records.plan import NoiseSettings


@dataclass(frozen=True)
class MatchedData:
    """Reads the shares of updates. Only `noise` differs between matched and direct SFT.

    `noise` is "matched" (the assigned noise), "random" (fresh noise), "base" (the base noise that each row's search started
    from) or "online" (fresh noise, which the trainer then matches; with `keeps` also the assigned noise).
    """

    #: The source of the rows: assignments, or a pair set without assigned noise.
    source: Assignments | UnassignedRows
    order: Order | SizeOrder
    #: The shape of the noise for images of `image_size` (Y, X); images of other sizes have other shapes.
    latent_shape: tuple[int, int, int]
    image_size: tuple[int, int]
    noise: NoiseKind
    seed: int
    #: The pair set with the images; needed for a pixel term, or if no target latents were stored.
    pairs: PairSet | None = None
    needs_images: bool = False
    #: Preserve rows of all workers together, and the prompts that they draw from (empty: those of the update's own rows).
    preserve_rows: int = 0
    preserve_prompts: tuple[str, ...] = ()
    #: Preserve rows 2i and 2i + 1 have the same prompt.
    preserve_differences: bool = False
    #: Micro-batches of a worker's share. The preserve rows need not divide evenly among workers and micro-batches: a part with
    #: fewer rows is filled up with rows of weight 0. So all parts have equal size and every preserve row has equal weight.
    micro_batches: int = 1
    #: Shape (c, h, w) of the target latents of images of `image_size`; None: that of the noise map.
    target_shape: tuple[int, int, int] | None = None
    #: Mean (C, H, W) that is subtracted from every assigned noise, scaled to its shape; None: no centring.
    center: np.ndarray | None = None
    keeps: bool = False
    #: The sizes of the images; None: `image_size`.
    framing: Framing | None = None
    #: Whether all parts of a share are filled up to equally many rows, as a compiled network needs.
    pads: bool = False

    @property
    def is_one_size(self) -> bool:
        """Whether all images have one size; then each share has one part."""
        return self.framing is None or self.framing.is_one_size

    @property
    def encodes(self) -> bool:
        """Whether targets are encoded from images because none were stored."""
        return isinstance(self.source, UnassignedRows) or not self.source.plan.noise.store_latents

    @property
    def noise_settings(self) -> NoiseSettings | None:
        """The settings of the assigned noise; None for a pair set without assigned noise."""
        return None if isinstance(self.source, UnassignedRows) else self.source.plan.noise

    def share(self, epoch: int, step: int, rank: int = 0, world: int = 1) -> Share:
        """Read a worker's share of one update. Raises UserError if an assignment is damaged or an image is missing."""
        if isinstance(self.order, SizeOrder):
            groups = self.order.groups(epoch, step, rank, world)
            read = [
                replace(
                    self._read([int(i) for i in group.rows]),
                    weights=group.weights,
                    places=[] if group.places is None else group.places.tolist(),
                )
                for group in groups
            ]
        else:
            whole = self._read([int(i) for i in self.order.share(epoch, step, rank, world)])
            read = self._by_size(whole, rank, world) if self._are_sizes_unknown else [whole]
        parts = [part for each in read for part in self._in_parts(each, world)]
        place = UpdatePlace(epoch, step, rank, world)
        shares = [self._share(part, place) for part in parts]
        return replace(shares[0], others=tuple(shares[1:]))

    @property
    def _are_sizes_unknown(self) -> bool:
        """Whether the size of a row's image is known only once the image is decoded."""
        return isinstance(self.source, UnassignedRows) and not self.source.framing.is_one_size

    def _read(self, index: list[int]) -> ReadRows:
        """Some rows; of assignments they have one size."""
        source = self.source
        if isinstance(source, UnassignedRows):
            before = set(source.unusable)
            read = source.read(index)
            unusable = [message for row, message in source.unusable.items() if row not in before]
            named = [(pair.sample_id, pair.image) for pair, _ in read]
            return ReadRows(
                index,
                named,
                [p.prompt for p, _ in read],
                [p.frame for p, _ in read],
                [i for _, i in read],
                unusable=unusable,
            )
        rows = source.rows(index, ["sample_id", "prompt", "image", *FRAME_COLUMNS])
        named = [(row["sample_id"], row["image"]) for row in rows]
        images = self._images(rows) if self.needs_images or self.encodes else None
        return ReadRows(index, named, [row["prompt"] for row in rows], [frame_of(row) for row in rows], images)

    def _by_size(self, rows: ReadRows, rank: int, world: int) -> list[ReadRows]:
        """The rows of each size, with equal weights."""
        sizes = [frame.size if frame is not None else self.image_size for frame in rows.frames]
        weights = np.full(len(sizes), world / self.order.batch_size, np.float32)
        groups = [[k for k, each in enumerate(sizes) if each == size] for size in dict.fromkeys(sizes)]
        first = rank * len(sizes)
        rows = replace(rows, weights=weights, places=list(range(first, first + len(sizes))))
        return [rows.taken(group, rows.unusable if number == 0 else []) for number, group in enumerate(groups)]

    def _in_parts(self, rows: ReadRows, world: int) -> list[ReadRows]:
        """Rows with weights, in parts as small as a micro-batch; filled up if the network is compiled."""
        if rows.weights is None:
            return [rows]
        most = self.order.batch_size // (world * self.micro_batches)
        parts = []
        for start in range(0, len(rows.index), most):
            some = list(range(start, min(start + most, len(rows.index))))
            fill = most - len(some) if self.pads else 0
            part = rows.taken(some + some[:1] * fill, rows.unusable if start == 0 else [])
            if fill and part.weights is not None:
                part.weights[len(some) :] = 0
                part.places[len(some) :] = [-1] * fill
            parts.append(part)
        return parts

    def _share(self, rows: ReadRows, place: UpdatePlace) -> Share:
        """The data of a part of a share."""
        shape = shape_at(rows.frames[0], self.latent_shape, self.image_size)
        names = [name for name, _ in rows.named]
        targets = None
        if isinstance(self.source, Assignments) and not self.encodes:
            like = shape_at(rows.frames[0], self.target_shape or self.latent_shape, self.image_size)
            targets = self.source.targets(rows.index, like).numpy()
        noise, kept = self._noise(place.epoch, rows.index, names, shape)
        texts, fresh, weights = self._preserve(place, rows, shape)
        return Share(
            rows=rows.index,
            row_names=[row_name(image, name) for name, image in rows.named],
            prompts=rows.prompts,
            noise=noise,
            kept=kept,
            targets=targets,
            images=np.stack(rows.images) if rows.images is not None else None,
            preserve_prompts=texts,
            preserve_noise=fresh,
            preserve_weights=weights,
            unusable=rows.unusable,
            frames=[list(self._told(frame)) for frame in rows.frames],
            weights=rows.weights,
        )

    def _told(self, frame: Frame | None) -> Frame:
        plain = self.framing or Framing.at(self.image_size)
        return plain.told(Frame.plain(self.image_size) if frame is None else frame)

    def _noise(
        self, epoch: int, index: list[int], names: list[str], shape: tuple[int, int, int]
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """The noise of some rows, and the kept noise that is mixed with it, if any."""
        if self.noise == "matched":
            return self._assigned(index, names, shape), None
        if self.noise == "base":
            assert isinstance(self.source, Assignments)
            return self.source.base_noise(index, shape).numpy(), None
        name = "match" if self.noise == "online" else "train"
        return self._drawn(name, epoch, names, shape), self._assigned(index, names, shape) if self.keeps else None

    def _assigned(self, index: list[int], names: list[str], shape: tuple[int, int, int]) -> np.ndarray:
        """The assigned noise of some rows. Without assignments each row has one random noise, the same in every epoch."""
        if isinstance(self.source, UnassignedRows):
            return self._drawn("kept", 0, names, shape)
        noise = self.source.noise(index, shape).numpy()
        return noise if self.center is None else noise - map_at(self.center, shape)

    def _drawn(self, name: str, epoch: int, names: list[str], shape: tuple[int, int, int]) -> np.ndarray:
        return seeded_normal([noise_seed(self.seed, name, epoch, n) for n in names], shape).numpy()

    def _images(self, rows: list[dict[str, Any]]) -> list[np.ndarray]:
        if self.pairs is None:
            raise UserError("training needs the images (a pixel term, or no stored latents): give --pairs")
        pairs, framing = self.pairs, self.framing or Framing.at(self.image_size)

        def image(row: dict[str, Any]) -> np.ndarray:
            name, most = row["sample_id"], pairs.fields.max_image_pixels
            return decode_framed(pairs.fetch_image(row["image"], name), framing, name, name, most)[0]

        with ThreadPoolExecutor(DECODING_THREADS) as pool:
            return list(pool.map(image, rows))

    def _preserve(
        self, place: UpdatePlace, share: ReadRows, shape: tuple[int, int, int]
    ) -> tuple[list[str], np.ndarray | None, np.ndarray | None]:
        """The preserve rows of a part of a share: their prompts, noise that is fresh in every update, and weights."""
        P = self.preserve_rows
        if not P:
            return [], None, None
        epoch, step, rank, world = place
        size = 2 if self.preserve_differences else 1
        U = P // size  # units: rows, or pairs of rows with one prompt
        # Numbers of the update's units; None: a row that fills up.
        units: list[int | None] = []
        parts = world * self.micro_batches
        most = -(-U // parts)
        if share.weights is None:  # the whole share: its units by micro-batch
            weight = parts / P
            pieces = [
                list(range(-(-part * U // parts), -(-(part + 1) * U // parts)))
                for part in range(rank * self.micro_batches, (rank + 1) * self.micro_batches)
            ]
        else:  # each unit goes with a row, and so has the size of this row's image, whatever the number of workers
            weight, own = world / P, set(share.places)
            pieces = [[unit for unit in range(U) if unit * self.order.batch_size // U in own]]
            most = max(1, len(pieces[0]), most if self.pads else 0)
        for mine in pieces:
            units += [*mine, *[None] * (most - len(mine))]
        rows = [(unit, k) for unit in units for k in range(size)]
        seeds = [noise_seed(self.seed, "preserve", epoch, step, (unit or 0) * size + k) for unit, k in rows]
        texts = [share.prompts[0] if unit is None else self._preserve_prompt(place, unit, U, share) for unit, _ in rows]
        weights = np.array([0.0 if unit is None else weight for unit, _ in rows], np.float32)
        return texts, seeded_normal(seeds, shape).numpy(), weights

    def _preserve_prompt(self, place: UpdatePlace, unit: int, units: int, share: ReadRows) -> str:
        epoch, step, rank, world = place
        if self.preserve_prompts:
            first_row = unit * (2 if self.preserve_differences else 1)
            drawn = noise_seed(self.seed, "preserve-prompt", epoch, step, first_row)
            return self.preserve_prompts[drawn % len(self.preserve_prompts)]
        # Spread evenly over the update's rows, so that a worker only needs the prompts of its own rows.
        row = unit * self.order.batch_size // units
        number = share.places.index(row) if share.places else row - rank * self.order.batch_size // world
        return share.prompts[number]


def map_at(noise: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """A map (C, H, W), scaled bilinearly to another height and width."""
    if noise.shape == shape:
        return noise
    scaled = torch.nn.functional.interpolate(torch.from_numpy(noise)[None], shape[1:], mode="bilinear", antialias=True)
    return scaled[0].numpy()


@torch.no_grad()
def to_batch(share: Share, generator: OneStepGenerator, prompts: PromptCache, needs_images: bool) -> SftBatch:
    """A share of one part on the generator's device, with encoded prompts; with encoded images if no latents were stored."""

    def moved(array: np.ndarray | None) -> torch.Tensor | None:
        return None if array is None else to_device(torch.from_numpy(array), generator.device)

    noise, targets, pixels, fresh, weights, of_rows = map(
        moved, (share.noise, share.targets, share.images, share.preserve_noise, share.preserve_weights, share.weights)
    )
    assert noise is not None
    images = None
    if pixels is not None:
        images = pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format).div_(255)
    if targets is None:
        assert images is not None
        targets = generator.encode_images(images)
    B = len(share.prompts)
    condition = prompts(share.prompts + share.preserve_prompts)
    plain, frames = Frame.plain(generator.image_size), [Frame(*numbers) for numbers in share.frames]
    if any(frame != plain for frame in frames):
        condition = condition.framed([*frames, *[Frame.plain(frames[0].size)] * len(share.preserve_prompts)])
    return SftBatch(
        noise,
        condition[:B],
        targets,
        images if needs_images else None,
        fresh,
        condition[B:] if fresh is not None else None,
        weights,
        of_rows,
    )
