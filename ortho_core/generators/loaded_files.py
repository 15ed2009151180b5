"""The files that a model is loaded from, and the check that they are still those of the plan.

A plan names a model by its fingerprint. Workers load it later, on other machines, some of them hours later. So the driver hashes
the files that they will load, the hashes travel with the `ModelFolder`, and each load hashes the files it has read again.
"""

from pathlib import Path

from ortho_core.errors import UserError
from ortho_core.generators.checkpoint_file import MERGES_FILE
from ortho_core.generators.fingerprints import fingerprint_over
from ortho_core.generators.model_folder import CLASS_KIND, ModelFolder
from ortho_core.generators.part_files import weights_of
from ortho_core.generators.pipeline_files import PipelineFiles
from ortho_core.storage.hashes import content_hash


def planned_fingerprint(model: ModelFolder, *dtypes: str) -> str:
    """The model's fingerprint, for a plan. Also hashes the files that a load in any of `dtypes` reads; `load_generator` compares
    with these hashes.

    Raises UserError for a file that cannot be read, and for a LoRA folder as `ModelFolder.fingerprint` does.
    """
    for dtype in dtypes:
        for computed in ("float32", *filter(None, [model.half])) if dtype == "auto" else (dtype,):
            model.base.hashes_of(LoadedFiles(model, computed).files)
    return model.fingerprint


class LoadedFiles:
    """The files that loading a model in `dtype` (no `auto`) reads."""

    def __init__(self, model: ModelFolder, dtype: str) -> None:
        self.model, self.base = model, model.base
        #: The variant of the weights that is loaded, by part.
        self.taken = {part: model.variant_of(part, dtype) for part in model.base.weights}
        weights = [name for part, variant in self.taken.items() for name in model.base.weights[part][variant]]
        #: Names of the files that the base's weights and vocabularies are loaded from.
        self.files = (*_unvaried(model.base), *weights)
        #: The known hashes by path: those of the configurations, and of files that were hashed before.
        self.planned = self._known()
        #: Hashes by name from the last call of `now`: of the base, of a LoRA folder's adapter, of each added LoRA.
        self.of_base: dict[str, str] = {}
        self.of_adapter: dict[str, str] = {}
        self.of_loras: dict[str, str] = {}

    def _known(self) -> dict[str, str]:
        base, model = self.base, self.model
        by_name = {**base.configurations, **{name: base.seen[name] for name in self.files if name in base.seen}}
        known = {self._place(name): value for name, value in by_name.items()}
        if model is not base:
            known |= {str(model.place / name): model.seen[name] for name in model.files if name in model.seen}
        return known | {str(lora.path): lora.content for lora in model.loras}

    def now(self) -> dict[str, str]:
        """The present hashes, by path, of the files that `planned` contains. Raises UserError for broken configurations."""
        base, model = self.base, self.model
        try:
            self.of_base = _configurations(base) | _hashes(base.place, self._files_now())
        except OSError as error:
            raise UserError(f"{error.filename or base.path} cannot be read: {error.strerror}") from error
        self.of_adapter = _hashes(model.place, model.files) if model is not base else {}
        self.of_loras = _hashes(Path(), [str(lora.path) for lora in model.loras])
        unplanned = {self._place(name) for name in self.files} - self.planned.keys()
        hashes = {self._place(name): value for name, value in self.of_base.items()}
        hashes = {path: value for path, value in hashes.items() if path not in unplanned}
        adapter = {str(model.place / name): value for name, value in self.of_adapter.items()}
        return hashes | {path: value for path, value in adapter.items() if path in self.planned} | self.of_loras

    def remember(self) -> str:
        """Keep the hashes of the last `now`: the next load is compared with them.

        Returns the fingerprint of the loaded files. It equals the model's unless the loaded variant of the weights is not the one
        that identifies the model.
        """
        base, model = self.base, self.model
        base.seen.update({name: value for name, value in self.of_base.items() if name in self.files})
        loaded = fingerprint_over(self.of_base)
        if model is not base:
            model.seen.update(self.of_adapter)
            loaded = fingerprint_over(self.of_adapter, loaded)
        added = [lora.adding(self.of_loras[str(lora.path)]) for lora in model.loras]
        return fingerprint_over({"": loaded}, added=added) if added else loaded

    def _files_now(self) -> tuple[str, ...]:
        """The present names of the files: a shard, or a file beside the shards, may have been added and be loaded instead."""
        base = self.base
        names = list(_unvaried(base))
        for part, planned in self.taken.items():
            try:
                files = weights_of(base.path / part, base.parts[part][0]).get(planned, ())
                names += [str(file.relative_to(base.path)) for file in files]
            except UserError:  # a missing file is reported under its planned name
                names += base.weights[part][planned]
        return tuple(names)

    def _place(self, name: str) -> str:
        base = self.base
        folder = base.configs if base.configs is not None and name not in self.files else base.place
        return str(folder / name)


def _unvaried(base: ModelFolder) -> tuple[str, ...]:
    """Names of the files that are loaded in any precision."""
    variants = {name for part in base.weights.values() for files in part.values() for name in files}
    return tuple(name for name in base.files if name not in variants)


def _configurations(base: ModelFolder) -> dict[str, str]:
    """`ModelFolder.configurations` and the vocabularies, read again."""
    if base.kind == CLASS_KIND:
        return dict(ModelFolder.open(base.path).configurations)
    assert base.configs is not None
    vocabulary = content_hash(MERGES_FILE) if base.built_in else ""
    pipeline = PipelineFiles.read(base.configs, weights=False, vocabulary=vocabulary)
    vocabularies = [str(file.relative_to(base.configs)) for file in pipeline.vocabularies]
    return {**pipeline.configurations, **_hashes(base.configs, vocabularies)}


def _hashes(folder: Path, names: tuple[str, ...] | list[str]) -> dict[str, str]:
    """SHA-256 of files by name; files that cannot be read are left out."""
    hashes = {}
    for name in names:
        try:
            hashes[name] = content_hash(folder / name)
        except OSError:
            continue
    return hashes
