"""The options of `ortho download`."""

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict

from ortho_core.marks import conduct, decides, resolved
from ortho_core.storage.location import LocalPath, OutputPath
from rayjobs.verb.catalog import CATALOG


def _names(value: object) -> object:
    """`NAME,NAME` as a tuple."""
    return tuple(name.strip() for name in value.split(",") if name.strip()) if isinstance(value, str) else value


class DownloadJob(BaseModel):
    """Download models of the catalogue. A download resumes, and its checksums are verified. HF_TOKEN, if set, is sent to the
    hub."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    only: Annotated[tuple[str, ...], BeforeValidator(_names)] = decides(
        (), description="NAME,NAME: models of the catalogue, or all (required to download)"
    )
    list: bool = conduct(False, description="print the models with use, size, licence and place, and stop")
    offline: bool = conduct(False, description="use no network: print which files are missing and where they belong")
    mirror: str | None = conduct(
        None, pattern=r"^https?://\S+$", description="URL of another server with the hub's API"
    )
    out: OutputPath = conduct(Path("models"), description="folder for the models' folders")
    older: LocalPath = conduct(
        Path("third_party_weights"), description="folder with models downloaded before; their files are linked"
    )
    catalog: LocalPath = resolved(CATALOG, description="TOML file of the catalogue")
