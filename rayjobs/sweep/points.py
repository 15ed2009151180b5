"""What a sweep's job varies: its space, the configuration that this is laid over, its trials."""

from ortho_core.errors import UserError, needed
from ortho_core.marks import conduct, mark_of
from ortho_core.pairs.rows import PairFields
from ortho_core.text.parsing import parse_yaml
from rayjobs.em.config import EmJob
from rayjobs.sweep.config import SweepJob
from rayjobs.sweep.space import Point, Space, draw, grid, parse_space
from rayjobs.verb.help import leaves

#: Fields that cannot be varied, with the reason.
FIXED = {
    **dict.fromkeys(("pairs", "model"), "is the same for all trials; run a sweep for each"),
    **dict.fromkeys(("heldout", "evaluate"), "decides how trials are judged, which must be the same for all"),
    **dict.fromkeys(("work_dir", "assignments_cache", "train.validation"), "is a place that the sweep itself decides"),
    **dict.fromkeys(("baseline", "validate_on_heldout"), "belongs to the sweep as a whole, not to a trial"),
    **dict.fromkeys(PairFields.model_fields, "is the same for all trials"),
}
#: Why a field that is marked `conduct` cannot be.
CONDUCT = "decides how fast a trial goes or what it tells, not what comes out of it"


def space_of(job: SweepJob) -> Space:
    """The checked space, from the file and the options together. Raises UserError."""
    given = dict(job.sweep)
    if job.space is not None:
        try:
            content = needed(parse_yaml, job.space.read_bytes(), f"--space {job.space}")
        except OSError as error:
            raise UserError(f"--space {job.space}: {error.strerror}") from error
        if not isinstance(content, dict):
            raise UserError(f"--space {job.space} is not a mapping of fields to values")
        given = content | given
    if not given:
        raise UserError(
            "nothing to vary; give --sweep.FIELD VALUES, e.g. --sweep.train.preserve-latent-weight 0,0.25,1"
        )
    return parse_space(given, base_of(job), fixed_fields())


def fixed_fields() -> dict[str, str]:
    """The fields, and groups of fields, that cannot be varied, each with the reason."""
    marked = [name for name, field in leaves(EmJob) if mark_of(field) is conduct]
    marked.remove("train.allow_stale")  # what it lets pass is not speed or reports
    return FIXED | {name: CONDUCT for name in marked if name not in FIXED}


def base_of(job: SweepJob) -> EmJob:
    """The configuration that the space is laid over."""
    base = EmJob(**{name: value for name, value in job.model_dump().items() if name in EmJob.model_fields})
    return base.model_copy(update={"heldout": job.heldout})  # which is read already


def points_of(job: SweepJob, space: Space) -> list[Point]:
    """The trials, as far as they are known beforehand; of Optuna's, what its first might be."""
    if job.search == "grid":
        return grid(space)
    return draw(space, job.samples, job.search_seed)


def reference_point(points: list[Point]) -> Point:
    """Where direct SFT stands: with the configuration's own values, on the E-step of the first trial."""
    return {name: value for name, value in points[0].items() if name.startswith("assign.")}
