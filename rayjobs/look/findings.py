"""The findings of `ortho look`: the content of its `summary.json`, and the same in sentences."""

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict

from ortho_core.errors import install
from ortho_core.framing.framing import Framing
from ortho_core.pairs.rows import Failure
from ortho_core.pairs.survey.alike import MOST_COMPARED, identical, nearly_alike, prompts_of
from ortho_core.pairs.survey.caption_texts import CLIP_WINDOW, clip_tokens, is_file_name
from ortho_core.pairs.survey.crop import enlarged, lost, shape
from ortho_core.pairs.survey.framed import Taken
from ortho_core.pairs.survey.sample import SeenRow
from rayjobs.reports.words import counted, listed, percent

#: The most sizes or prompts that are listed; the most frequent ones.
NAMED = 8
#: A crop is reported if it cuts off more than this share of an image.
MUCH_LOST = 1 / 3
#: Layouts whose prompts are class names: a number, or a folder's name.
CLASSES = ("classes", "labelled")


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class BucketFindings(Frozen):
    """What the crop cuts off if each image goes to the nearest of several sizes."""

    #: How many sizes there are, and how many images are nearest to each that has some (`WIDTHxHEIGHT`).
    sizes: int
    images: dict[str, int]
    mean_lost: float
    most_lost: float
    #: Images that would lose so much that they are not used.
    too_extreme: int
    enlarged: int


class Sizes(Frozen):
    """Sizes and file types of the images. Sizes are in pixels, after the EXIF rotation."""

    #: (width, height); by area.
    smallest: tuple[int, int]
    largest: tuple[int, int]
    different: int
    #: The shorter side: minimum, 5 % quantile, median, 95 % quantile, maximum.
    shorter_side: tuple[int, int, int, int, int]
    most_common: dict[str, int]
    shapes: dict[str, int]
    modes: dict[str, int]
    file_types: dict[str, int]
    #: Images whose shorter side is below `--size`, and the factor by which the smallest one is enlarged.
    enlarged: int
    most_enlarged: float
    #: Shares of the image that a square centre crop cuts off.
    mean_lost: float
    most_lost: float
    much_lost: int
    #: The same with the sizes of `--buckets`; None without these.
    buckets: BucketFindings | None = None


class CaptionFindings(Frozen):
    """Lengths and repetitions of the captions."""

    #: Rows whose caption is missing or blank; they are among the unusable ones.
    empty: int
    different: int
    characters: tuple[int, int, int]
    #: CLIP tokens with start and end: minimum, median, maximum. None if open_clip's tokenizer is not installed.
    tokens: tuple[int, int, int] | None
    too_long: int | None
    like_file_names: int
    most_common: dict[str, int]


class Copies(Frozen):
    """Images that occur more than once among the rows looked at."""

    #: Copies, without the first image of each group.
    identical: int
    identical_groups: int
    #: Groups of the same image that have different prompts.
    other_prompts: int
    nearly_alike: int
    nearly_alike_groups: int
    #: Images that were compared to find nearly alike ones.
    compared: int


class Findings(Frozen):
    """The content of `summary.json`, without configuration and versions."""

    recognised: dict[str, Any]
    rows: int
    looked_at: int
    usable: int
    unusable: int
    unusable_by_reason: dict[str, int]
    #: None if no row can be used.
    sizes: Sizes | None
    captions: CaptionFindings
    copies: Copies
    seconds: float


@dataclass(frozen=True)
class Looked:
    """The rows behind the findings, for the report's examples."""

    seen: Sequence[SeenRow]
    failures: Sequence[Failure]
    identical: Sequence[Sequence[SeenRow]]
    nearly_alike: Sequence[Sequence[SeenRow]]
    #: Rows with a caption that is too long and their tokens, the longest first.
    too_long: Sequence[tuple[int, SeenRow]]
    like_file_names: Sequence[SeenRow]


def most_frequent(counts: Counter[str], most: int = NAMED) -> dict[str, int]:
    """The `most` most frequent names, the most frequent first; ties are in alphabetical order."""
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:most])


def find(
    recognised: dict[str, Any],
    outcomes: Sequence[SeenRow | Failure],
    size: int,
    seconds: float,
    framing: Framing | None = None,
) -> tuple[Findings, Looked]:
    """The findings on these rows, and the rows behind them. `recognised` is the record of how the pair set was read.

    `framing` has the sizes whose crops are reported beside those of a square of side `size`.
    """
    seen = [one for one in outcomes if isinstance(one, SeenRow)]
    failures = [one for one in outcomes if isinstance(one, Failure)]
    tokens = clip_tokens()
    lengths = [tokens(one.pair.prompt) for one in seen] if tokens else None
    pairs = zip(lengths or (), seen, strict=bool(lengths))
    too_long = sorted(((n, one) for n, one in pairs if n > CLIP_WINDOW), key=lambda each: -each[0])
    named = recognised["layout"] not in CLASSES
    looked = Looked(
        seen,
        failures,
        identical(seen),
        nearly_alike(seen),
        too_long,
        [one for one in seen if named and is_file_name(one.pair.prompt, one.pair.image)],
    )
    findings = Findings(
        recognised=recognised,
        rows=recognised["rows"],
        looked_at=len(outcomes),
        usable=len(seen),
        unusable=len(failures),
        unusable_by_reason=most_frequent(Counter(failure.reason for failure in failures), len(failures)),
        sizes=sizes_of(seen, size, framing) if seen else None,
        captions=CaptionFindings(
            empty=sum(failure.reason == "missing-prompt" for failure in failures),
            different=len({one.pair.prompt for one in seen}),
            characters=spread_of([len(one.pair.prompt) for one in seen]),
            tokens=spread_of(lengths) if lengths else None,
            too_long=None if lengths is None else len(too_long),
            like_file_names=len(looked.like_file_names),
            most_common=most_frequent(Counter(one.pair.prompt for one in seen)),
        ),
        copies=Copies(
            identical=sum(len(group) - 1 for group in looked.identical),
            identical_groups=len(looked.identical),
            other_prompts=sum(len(prompts_of(group)) > 1 for group in looked.identical),
            nearly_alike=sum(len(group) - 1 for group in looked.nearly_alike),
            nearly_alike_groups=len(looked.nearly_alike),
            compared=min(len({one.digest for one in seen}), MOST_COMPARED),
        ),
        seconds=round(seconds, 2),
    )
    return findings, looked


def spread_of(values: Sequence[int]) -> tuple[int, int, int]:
    """Minimum, median and maximum; zeros without values."""
    return (min(values), round(statistics.median(values)), max(values)) if values else (0, 0, 0)


def in_buckets(seen: Sequence[SeenRow], framing: Framing) -> BucketFindings:
    taken = Taken.of(framing, [(one.height, one.width) for one in seen])
    return BucketFindings(
        sizes=len(framing.sizes),
        images=taken.sizes,
        mean_lost=round(taken.mean_lost, 4),
        most_lost=round(taken.most_lost, 4),
        too_extreme=taken.too_extreme,
        enlarged=taken.enlarged,
    )


def sizes_of(seen: Sequence[SeenRow], size: int, framing: Framing | None = None) -> Sizes:
    """The sizes of at least one image; `size` is the side that a model needs."""
    areas = sorted((one.width * one.height, one.width, one.height) for one in seen)
    sides = sorted(min(one.width, one.height) for one in seen)
    cut = [lost(one.width, one.height) for one in seen]
    at = [sides[round(share * (len(sides) - 1))] for share in (0, 0.05, 0.5, 0.95, 1)]
    all_sizes = Counter(f"{one.width}×{one.height}" for one in seen)
    return Sizes(
        smallest=areas[0][1:],
        largest=areas[-1][1:],
        different=len(all_sizes),
        shorter_side=(at[0], at[1], at[2], at[3], at[4]),
        most_common=most_frequent(all_sizes),
        shapes=most_frequent(Counter(shape(one.width, one.height) for one in seen), len(seen)),
        modes=most_frequent(Counter(one.mode for one in seen), len(seen)),
        file_types=most_frequent(Counter(one.kind for one in seen), len(seen)),
        enlarged=sum(side < size for side in sides),
        most_enlarged=round(max(1.0, enlarged(sides[0], sides[0], size)), 2),
        mean_lost=round(statistics.fmean(cut), 4),
        most_lost=round(max(cut), 4),
        much_lost=sum(share > MUCH_LOST + 1e-6 for share in cut),
        buckets=in_buckets(seen, framing) if framing is not None else None,
    )


def share(count: int, total: int) -> str:
    """A part of `total` as a percentage."""
    return percent(count / total)


def sentences(findings: Findings, size: int) -> list[str]:
    """The findings in words, the most expensive problems first."""
    lines = [coverage(findings)]
    if findings.sizes is not None:
        sizes = findings.sizes
        lines += [
            captions_in_words(findings.captions, findings.usable),
            copies_in_words(findings.copies),
            sizes_in_words(sizes, findings.usable, size),
            crop_in_words(sizes),
        ]
        if others := {mode: count for mode, count in sizes.modes.items() if mode != "colour"}:
            kept = listed([f"{count:,} {mode}" for mode, count in others.items()])
            laid = "; transparent parts become white" if "with transparency" in others else ""
            lines.append(f"Not plain colour: {kept}. They are converted to RGB{laid}.")
    return lines


def coverage(findings: Findings) -> str:
    rows, looked_at = findings.rows, findings.looked_at
    looked = (
        f"Looked at {'all ' if looked_at > 1 else ''}{counted(rows, 'row')}"
        if looked_at == rows
        else f"Looked at {looked_at:,} of {counted(rows, 'row')}, spread over the whole set"
    )
    if not findings.unusable:
        return f"{looked}: all can be used."
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in findings.unusable_by_reason.items())
    return f"{looked}: {findings.usable:,} can be used, {findings.unusable:,} cannot ({reasons})."


def captions_in_words(captions: CaptionFindings, usable: int) -> str:
    if captions.different == 1 and usable > 1:
        text = f"All images have one prompt: “{next(iter(captions.most_common))[:80]}”."
    else:
        text = f"{counted(captions.different, 'different prompt')} for {counted(usable, 'image')}."
    if captions.tokens is None:
        text += f" Their tokens were not counted: that needs open_clip ({install('rewards')})."
    elif captions.too_long:
        text += (
            f" {counted(captions.too_long, 'prompt is', 'prompts are')} longer than CLIP's {CLIP_WINDOW} tokens and lose their "
            f"end ({captions.tokens[2]} at most)."
        )
    else:
        _, median, most = captions.tokens
        text += f" None is longer than CLIP's {CLIP_WINDOW} tokens ({median} in the median, {most} at most)."
    if captions.like_file_names:
        text += f" {counted(captions.like_file_names, 'prompt looks', 'prompts look')} like a file name."
    return text


def copies_in_words(copies: Copies) -> str:
    if not copies.identical and not copies.nearly_alike:
        return "No image occurs twice."
    parts = []
    if copies.identical:
        parts.append(f"{counted(copies.identical, 'image is a copy', 'images are copies')} of another, pixel for pixel")
    if copies.nearly_alike:
        parts.append(f"{counted(copies.nearly_alike, 'image looks', 'images look')} nearly like another")
    text = "; ".join(parts) + "."
    if copies.other_prompts:
        text += f" The copies of {counted(copies.other_prompts, 'image')} have different prompts."
    return text


def sizes_in_words(sizes: Sizes, usable: int, size: int) -> str:
    (name, count), *_ = sizes.most_common.items()
    if sizes.different == 1:
        text = f"All are {name}."
    else:
        small, large = ("×".join(map(str, each)) for each in (sizes.smallest, sizes.largest))
        text = f"Sizes from {small} to {large}, most often {name} ({share(count, usable)} of them)."
    if not sizes.enlarged:
        return f"{text} None is smaller than {size}."
    which = (
        "All" if sizes.enlarged == usable else f"{counted(sizes.enlarged, 'image')} ({share(sizes.enlarged, usable)})"
    )
    return f"{text} {which} would be enlarged to reach {size} pixels, up to {sizes.most_enlarged:.1f} times."


def crop_in_words(sizes: Sizes) -> str:
    if not sizes.most_lost:
        return "All images are square, so a centre crop cuts nothing off."
    buckets = "" if sizes.buckets is None else f" {buckets_in_words(sizes.buckets)}"
    text = f"A square centre crop cuts off {sizes.mean_lost:.0%} of a picture on average, {sizes.most_lost:.0%} at most"
    if sizes.much_lost:
        return f"{text}; {counted(sizes.much_lost, 'picture loses', 'pictures lose')} more than a third.{buckets}"
    return f"{text}.{buckets}"


def buckets_in_words(found: BucketFindings) -> str:
    text = (
        f"With {counted(found.sizes, 'size')} of one area (--buckets) it cuts off {percent(found.mean_lost)} on average, "
        f"{percent(found.most_lost)} at most"
    )
    if found.too_extreme:
        return f"{text}; {counted(found.too_extreme, 'picture is', 'pictures are')} too long for all of them."
    return f"{text}."
