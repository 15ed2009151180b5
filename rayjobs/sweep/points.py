"""The space of a sweep, the configuration whose fields it varies, and the trials."""

from ortho_core.errors import UserError, needed
from ortho_core.marks import conduct, mark_of
from ortho_core.pairs.rows import PairFields
from ortho_core.text.parsing import parse_yaml
from rayjobs.em.config import EmJob
from rayjobs.sweep.config import SweepJob
from rayjobs.sweep.space import Point, Space, draw, grid, parse_space
from rayjobs.verb.help import leaves
from rayjobs.verb.image_size import BucketSettings

#: Fields that cannot be varied, with the reason.
FIXED = {
    **dict.fromkeys(("pairs", "model"), "is the same for all trials; run one sweep for each"),
    **dict.fromkeys(
        ("heldout", "evaluate", *BucketSettings.model_fields),
        "decides how trials are judged, which must be the same for all",
    ),
    **dict.fromkeys(("work_dir", "assignments_cache", "train.validation"), "is a folder that the sweep decides"),
    **dict.fromkeys(("baseline", "validate_on_heldout"), "belongs to the sweep as a whole, not to a trial"),
    **dict.fromkeys(PairFields.model_fields, "is the same for all trials"),
}
#: Why a field that is marked `conduct` cannot be varied.
CONDUCT = "changes the speed or the messages of a trial, not its result"


def space_of(job: SweepJob) -> Space:
    """The checked space, from the file and the options together. Raises UserError."""
    fields = dict(job.sweep)
    if job.space is not None:
        try:
            content = needed(parse_yaml, job.space.read_bytes(), f"--space {job.space}")
        except OSError as error:
            raise UserError(f"--space {job.space}: {error.strerror}") from error
        if not isinstance(content, dict):
            raise UserError(f"--space {job.space} is not a mapping of fields to values")
        fields = content | fields
    if not fields:
        raise UserError(
            "nothing to vary; give --sweep.FIELD VALUES, e.g. --sweep.train.preserve-latent-weight 0,0.25,1"
        )
    return parse_space(fields, base_of(job), fixed_fields())


def fixed_fields() -> dict[str, str]:
    """The fields, and groups of fields, that cannot be varied, each with the reason."""
    marked = [name for name, field in leaves(EmJob) if mark_of(field) is conduct]
    marked.remove("train.allow_stale")  # it changes results: it allows training on noise of another model
    return FIXED | {name: CONDUCT for name in marked if name not in FIXED}


def base_of(job: SweepJob) -> EmJob:
    """The configuration of the trials before fields are varied."""
    base = EmJob(**{name: value for name, value in job.model_dump().items() if name in EmJob.model_fields})
    return base.model_copy(update={"heldout": job.heldout})  # `auto` is settled already, and must not be read again


def points_of(job: SweepJob, space: Space) -> list[Point]:
    """The trials as known beforehand. For Optuna, which draws its own, random points stand in for them."""
    if job.search == "grid":
        return grid(space)
    return draw(space, job.samples, job.search_seed)


def reference_point(points: list[Point]) -> Point:
    """The point of direct SFT: the values of the configuration, with the E-step of the first trial."""
    return {name: value for name, value in points[0].items() if name.startswith("assign.")}
