"""The catalogue of downloadable models: their files and where these belong. Uses no network.

A LoRA or the weights of a UNet are not a complete pipeline. Such a model has two folders: one with its files as they are
published, and one with the pipeline that `rayjobs.download.assemble` makes of them and a base.
"""

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from ortho_core.errors import UserError, needed
from ortho_core.text.parsing import first_fault, parse_toml

#: The catalogue that comes with the code.
CATALOG = Path(__file__).resolve().parents[1] / "download" / "catalog.toml"


def inside(path: str) -> str:
    """Returns the path. Raises ValueError unless it is a plain relative path that stays inside its folder."""
    parts = path.split("/")
    if not path or "\\" in path or ":" in path or any(part in {"", ".", ".."} for part in parts):
        raise ValueError(
            f"{path!r} leads out of its folder; accepted: a relative path with / between its parts, without .."
        )
    return path


Inside = Annotated[str, AfterValidator(inside)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelFile(_Part):
    """A file of the repository; it has the same path in the model's folder."""

    path: Inside
    size: int | None = Field(None, ge=0)  #: bytes
    about: int | None = Field(None, ge=0)  #: bytes, where only a rounded figure is known
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    instead: tuple[Inside, ...] = ()

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name

    @property
    def bytes_about(self) -> int:
        """The exact or rounded size; 0 for small text files, whose size is not known."""
        return self.size or self.about or 0

    @model_validator(mode="after")
    def _one_size(self) -> "ModelFile":
        if self.size is not None and self.about is not None:
            raise ValueError(f"{self.path} has both size and about; accepted: one of them")
        return self


class License(_Part):
    id: str = Field(min_length=1)
    commercial: Literal["yes", "conditional", "no", "unclear"]
    allows: str = Field(min_length=1)


class Recipe(_Part):
    """How one step is taken: the diffusers scheduler, the network's prediction type, and the timestep that it gets.

    The step of a flow model (`flow`, `trigflow`) is its scheduler's first one, so its recipe has no timestep.
    """

    scheduler: str
    prediction_type: Literal["epsilon", "v_prediction", "sample", "flow", "trigflow"]
    timestep: int | None = Field(None, ge=0, lt=1000)
    #: Changes to the configuration of the base's scheduler, in a pipeline that is assembled.
    options: Mapping[str, bool | int | float | str] = {}

    @model_validator(mode="after")
    def _has_a_timestep_unless_it_flows(self) -> "Recipe":
        flows = self.prediction_type in ("flow", "trigflow")
        if flows == (self.timestep is not None):
            takes = "has no timestep (its step is the scheduler's first one)" if flows else "needs a timestep"
            raise ValueError(f"a recipe with prediction_type {self.prediction_type} {takes}")
        return self


class Assembly(_Part):
    how: Literal["lora", "unet"]
    base: str
    into: Inside


class Entry(_Part):
    title: str
    kind: Literal["generator", "base", "part", "reward"]
    folder: Inside
    repository: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    revision: str = Field(pattern=r"^[\w./-]+$")
    files: tuple[ModelFile, ...] = Field(min_length=1)
    license: License
    requires: tuple[str, ...] = ()
    recipe: Recipe | None = None
    assemble: Assembly | None = None
    #: What could not be checked against the hub's own figures; None if everything was.
    unverified: str | None = Field(None, pattern=r"^[^\n]+$")

    @property
    def model_folder(self) -> str:
        """The folder to give to a command, under the models root."""
        return self.assemble.into if self.assemble else self.folder

    @property
    def bytes_about(self) -> int:
        return sum(file.bytes_about for file in self.files)

    @model_validator(mode="after")
    def _whole(self) -> "Entry":
        if (self.kind == "generator") != (self.recipe is not None):
            raise ValueError("an entry of kind generator needs a recipe; other kinds have none")
        if self.assemble and (len(self.files) != 1 or self.assemble.base not in self.requires):
            raise ValueError("an entry with assemble needs exactly one file, and its base in requires")
        if self.recipe and self.assemble and self.recipe.timestep is None:
            raise ValueError("an entry with assemble needs a recipe with a timestep")
        if self.recipe and self.recipe.options and not self.assemble:
            raise ValueError(
                "only an entry with assemble has options; a complete pipeline has its scheduler's configuration"
            )
        return self


Catalog = Mapping[str, Entry]


def read_catalog(file: Path = CATALOG) -> dict[str, Entry]:
    """The entries by name, in the file's order. Raises UserError naming the file, the entry and the field."""
    try:
        content = needed(parse_toml, file.read_bytes(), f"catalogue {file}")
    except OSError as error:
        raise UserError(f"catalogue {file}: {error.strerror}") from error
    if set(content) != {"models"} or not isinstance(content["models"], dict):
        raise UserError(f"catalogue {file} has {sorted(content)} at its top level; accepted: tables [models.NAME]")
    catalog = {name: _entry(file, name, value) for name, value in content["models"].items()}
    above: set[str] = set()
    for name, entry in catalog.items():
        for other in entry.requires:
            if other not in above:
                raise UserError(f"catalogue {file}: {name} requires {other!r}; accepted: entries above it")
        above.add(name)
    return catalog


def _entry(file: Path, name: str, content: object) -> Entry:
    try:
        return Entry.model_validate(content)
    except ValidationError as error:
        raise UserError(f"catalogue {file}: {first_fault(error, name)}") from error
