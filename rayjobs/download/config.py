"""The options of `ortho download`."""

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict

from ortho_core.marks import conduct, decides, resolved
from ortho_core.storage.location import LocalPath, OutputPath
from rayjobs.verb.catalog import CATALOG


def _names(given: object) -> object:
    """`NAME,NAME` as a tuple."""
    return tuple(name.strip() for name in given.split(",") if name.strip()) if isinstance(given, str) else given


class DownloadJob(BaseModel):
    """Download models of the catalogue, resumed and verified. HF_TOKEN, where set, is shown to the hub."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    only: Annotated[tuple[str, ...], BeforeValidator(_names)] = decides(
        (), description="NAME,NAME of the catalogue, or all (required to download)"
    )
    list: bool = conduct(False, description="print what there is, what for, how large, under which licence, and stop")
    offline: bool = conduct(False, description="ask no server: say which files are missing and where they belong")
    mirror: str | None = conduct(None, pattern=r"^https?://\S+$", description="URL of another server that is a hub")
    out: OutputPath = conduct(Path("models"), description="root of the models' folders")
    older: LocalPath = conduct(
        Path("third_party_weights"), description="folder with models from earlier, which are linked"
    )
    catalog: LocalPath = resolved(CATALOG, description="the catalogue")
