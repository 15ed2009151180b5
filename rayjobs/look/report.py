"""The report of `ortho look`."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import yaml

from ortho_core.errors import BadRow, install
from ortho_core.pairs.pair_set import PairSet
from ortho_core.pairs.survey.alike import ALIKE, prompts_of
from ortho_core.pairs.survey.caption_texts import CLIP_WINDOW
from ortho_core.pairs.survey.crop import framed, lost
from ortho_core.pairs.survey.sample import SeenRow, picture_of
from ortho_core.report.page import (
    PREVIEW,
    Block,
    Card,
    Cards,
    Embedded,
    Fact,
    Folded,
    Heading,
    Section,
    Table,
    render,
)
from rayjobs.look.config import LookJob
from rayjobs.look.findings import CaptionFindings, Copies, Findings, Looked, Sizes, buckets_in_words, sentences, share
from rayjobs.reports.words import counted, duration

#: The most pictures in the contact sheet, crops, groups of copies, pictures of a group, and examples of captions and reasons.
CONTACTS, CROPS, COPY_GROUPS, OF_A_GROUP, EXAMPLES = 48, 12, 6, 4, 5


@dataclass(frozen=True)
class Shown:
    """Makes cards of rows. Images are fetched and decoded again, so that the images of all rows need not be in memory."""

    pairs: PairSet

    def card(self, one: SeenRow, detail: str = "", frame: bool = False) -> Iterator[Card]:
        """One card; none if the image cannot be read any more."""
        with suppress(BadRow):
            picture = picture_of(self.pairs, one.pair)
            picture = framed(picture, PREVIEW) if frame else picture
            yield Card([Embedded.of(picture)], one.pair.prompt, [detail or f"{one.name}, {one.width}×{one.height}"])


def html_of(job: LookJob, pairs: PairSet, findings: Findings, looked: Looked) -> str:
    """The whole report."""
    shown = Shown(pairs)
    sections = [Section("What was read", read(findings))]
    if findings.sizes is not None:
        sections = [
            Section("Contact sheet", [contacts(shown, looked.seen, findings)]),
            *sections,
            Section("Captions", captions(findings.captions, looked, findings.usable)),
            Section("Sizes and crops", sizes(shown, findings.sizes, looked.seen, job.size)),
            Section("The same image twice", copies(shown, findings.copies, looked)),
        ]
    if looked.failures:
        sections.append(Section("Cannot be used", unusable(findings.unusable_by_reason, looked)))
    config = yaml.safe_dump(job.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    how = (
        f"This took {duration(findings.seconds)}. To repeat it: ortho look --config FILE.yaml, with this configuration."
    )
    sections.append(Section("How it was made", [how, Folded("Configuration", text=config)]))
    facts = [
        Fact(f"{findings.looked_at:,} of {findings.rows:,}", "rows looked at"),
        Fact(f"{findings.usable:,} + {findings.unusable:,}", "can be used + cannot"),
        Fact(f"{findings.captions.different:,}", "different prompts among them"),
    ]
    title = f"A look at {pairs.location.rstrip('/').rpartition('/')[2] or pairs.location}"
    return render(title, pairs.location, sections, sentences(findings, job.size), facts)


def read(findings: Findings) -> list[Block]:
    """How the pair set was read, as in the first line that a verb prints, in a table."""
    recognised = findings.recognised
    lines = [["layout", str(recognised["layout"])], ["read as", str(recognised["what"])]]
    lines += [["rows", f"{findings.rows:,}"], ["captions", str(recognised["prompts"])]]
    lines += [["note", note] for note in recognised["notes"]]
    lines += [["left aside", aside] for aside in recognised["left_aside"] or ["nothing"]]
    return [Table(["what", ""], lines, text=True)]


def contacts(shown: Shown, seen: Sequence[SeenRow], findings: Findings) -> Cards:
    chosen = [seen[i * len(seen) // min(CONTACTS, len(seen))] for i in range(min(CONTACTS, len(seen)))]
    complete = len(chosen) == findings.rows
    which = "Every image" if complete else f"{counted(len(chosen), 'image')}, spread over the whole set"
    return Cards(
        (),
        [card for one in chosen for card in shown.card(one)],
        f"{which}, with prompt, file and size before any crop.",
    )


def shares(groups: Mapping[str, Mapping[str, int]], total: int) -> Table:
    """How many images there are of each kind, with one block of rows for each group."""
    rows: list[list[str] | str] = []
    for title, counts in groups.items():
        rows += [title, *([name, f"{count:,}", share(count, total)] for name, count in counts.items())]
    return Table(["", "images", "share"], rows)


def shortened(text: str, most: int = 300) -> str:
    return text if len(text) <= most else f"{text[:most]}…"


def captions(captions: CaptionFindings, looked: Looked, usable: int) -> list[Block]:
    rows = [["characters", *(f"{value:,}" for value in captions.characters)]]
    if captions.tokens is not None:
        rows.append(["CLIP tokens", *(f"{value:,}" for value in captions.tokens)])
    blocks: list[Block] = [Table(["length", "shortest", "median", "longest"], rows)]
    if captions.tokens is None:
        blocks.append(f"Tokens are counted with open_clip, which is not installed: {install('rewards')}.")
    else:
        blocks.append(
            f"CLIP's text encoders read at most {CLIP_WINDOW} tokens, with start and end. The end of "
            f"{counted(captions.too_long or 0, 'prompt')} is cut off."
        )
    if looked.too_long:
        longest = [[one.name, str(tokens), shortened(one.pair.prompt)] for tokens, one in looked.too_long[:EXAMPLES]]
        blocks += [Heading("The longest"), Table(["file", "tokens", "prompt"], longest, text=True)]
    if looked.like_file_names:
        names = [[one.name, shortened(one.pair.prompt)] for one in looked.like_file_names[:EXAMPLES]]
        blocks += [
            Heading("Prompts that look like file names"),
            Table(["file", "prompt"], names, text=True),
        ]
    repeated = {prompt: count for prompt, count in captions.most_common.items() if count > 1}
    if repeated:
        common = [[shortened(prompt), f"{count:,}", share(count, usable)] for prompt, count in repeated.items()]
        blocks += [Heading("The most frequent"), Table(["prompt", "images", "share"], common, text=True)]
    if captions.empty:
        blocks.append(f"{counted(captions.empty, 'row has', 'rows have')} no prompt and cannot be used.")
    return blocks


def sizes(shown: Shown, sizes: Sizes, seen: Sequence[SeenRow], size: int) -> list[Block]:
    header = ["", "smallest", "5 %", "median", "95 %", "largest"]
    usable = len(seen)
    blocks: list[Block] = [
        Table(header, [["shorter side, pixels", *(f"{value:,}" for value in sizes.shorter_side)]]),
        f"{counted(sizes.enlarged, 'image')} of {usable:,} would be enlarged to reach {size} pixels, without gaining detail.",
        shares(
            {"size": sizes.most_common, "shape": sizes.shapes, "pixels": sizes.modes, "file": sizes.file_types}, usable
        ),
    ]
    if (found := sizes.buckets) is not None:
        enlarged = counted(found.enlarged, "picture", "pictures")
        blocks += [
            f"Several sizes of one area instead of one square: {buckets_in_words(found)} {enlarged} would be "
            "enlarged. How many go to each size:",
            shares({"size": found.images}, usable),
        ]
    cut = sorted((one for one in seen if lost(one.width, one.height) > 0), key=lambda one: -lost(one.width, one.height))
    if cut:
        cards = [
            card
            for one in cut[:CROPS]
            for card in shown.card(
                one,
                f"{lost(one.width, one.height):.0%} cut off; {one.name}",
                frame=True,
            )
        ]
        caption = "The images that lose most to a square centre crop. The part inside the frame stays; the faded part is cut off."
        blocks.append(Cards((), cards, caption))
    return blocks


def copies(shown: Shown, copies: Copies, looked: Looked) -> list[Block]:
    compared = (
        f"Only rows that were looked at are compared. Two images are nearly alike if they differ by at most {ALIKE:.0%} of "
        f"their contrast at 16×16 pixels; {counted(copies.compared, 'image was', 'images were')} compared in this way."
    )
    blocks: list[Block] = []
    # Groups with different prompts come first: at least one of these prompts is wrong or incomplete.
    same = sorted(looked.identical, key=lambda group: len(prompts_of(group)) < 2)
    for title, groups in (("The same pixels", same), ("Nearly alike", looked.nearly_alike)):
        if groups:
            more = f" (the first {COPY_GROUPS} of {len(groups):,} groups)" if len(groups) > COPY_GROUPS else ""
            blocks.append(Heading(title + more))
        for group in groups[:COPY_GROUPS]:
            cards = [card for one in group[:OF_A_GROUP] for card in shown.card(one)]
            prompts = len(prompts_of(group))
            blocks.append(Cards((), cards, f"{counted(len(group), 'row')}, {counted(prompts, 'prompt')}"))
    return [*(blocks or ["None."]), compared]


def unusable(reasons: Mapping[str, int], looked: Looked) -> list[Block]:
    """The rows that cannot be used, by the reason that `ortho assign` would write into its quarantine."""
    rows: list[list[str] | str] = []
    for reason, count in reasons.items():
        rows.append(f"{reason}: {counted(count, 'row')}")
        examples = [failure for failure in looked.failures if failure.reason == reason][:EXAMPLES]
        rows += [[str(failure.row), failure.message] for failure in examples]
    return [
        "ortho assign quarantines these rows with the same reasons and continues.",
        Table(["row", "what is wrong"], rows, text=True),
    ]
