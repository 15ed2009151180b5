"""Feature extractors for FID, KID, CMMD, precision and recall, chosen by a name or by a model's folder.

Axes: B images, 3 × Y × X pixels, D features.
"""

import io
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from ortho_core.errors import UserError, install
from ortho_core.pictures import to_bytes
from ortho_core.rewards.base import check_files, frozen, load_weights, read_weights
from ortho_core.rewards.clip import ClipTower, clip_files
from ortho_core.rewards.names import fingerprint_of
from ortho_core.text.parsing import NotParsedError, json_file, shown
from ortho_core.text.plain_text import one_line

#: The CLIP model that is installed with this package.
TINY_CLIP = Path(__file__).resolve().parent / "tiny-clip"
#: The weights of FID's own network, as torch-fidelity publishes them.
INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
VISION_FILES = (
    ("config.json",),
    ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"),
    ("preprocessor_config.json",),
)


@runtime_checkable
class Extractor(Protocol):
    """Computes the features of images. The features of an image do not depend on the other images."""

    def __call__(self, images: Tensor) -> Tensor:
        """Features (B, D) float32 of images (B, 3, Y, X) in [0, 1], rounded to multiples of 1/255."""
        ...


@dataclass(frozen=True)
class FeatureModel:
    """The extractor that `--features` names. Its files exist; none is loaded yet."""

    name: str
    kind: Literal["clip", "inception", "vision"]
    folder: Path
    fingerprint: str

    def load(self, device: str | torch.device, towers: MutableMapping[Path, ClipTower]) -> Extractor:
        """The extractor on the device. A CLIP model that `towers` already has is reused. Raises UserError."""
        if self.kind == "inception":
            return Inception(self.folder / INCEPTION, device)
        if self.kind == "vision":
            return VisionModel(self.folder, device)
        if self.folder not in towers:
            towers[self.folder] = ClipTower.load(self.folder, f"--features {self.name}", "a CLIP model", device)
        return ClipFeatures(towers[self.folder])


def find_features(given: str, root: Path, option: str = "--features") -> FeatureModel:
    """The extractor of a name or a folder. The folder of a name is searched under `root`. Raises UserError."""
    if given == "inception":
        folder, origin = root / "inception", "InceptionV3 for FID (from torch-fidelity's releases)"
        check_files(folder, f"{option} inception", [(INCEPTION,)], origin)
        return FeatureModel(given, "inception", folder, fingerprint_of([folder / INCEPTION]))
    folder = (TINY_CLIP if given == "tiny-clip" else Path(given)).absolute()
    if not folder.is_dir():
        raise UserError(
            f"{option} {given}: the folder {folder} does not exist; accepted: tiny-clip, inception, or a folder of a CLIP or "
            "other vision model in transformers' format"
        )
    name = "tiny-clip" if folder == TINY_CLIP else folder.name
    check_files(folder, f"{option} {given}", VISION_FILES[:1], "a vision model in transformers' format")
    if model_type(folder / "config.json", option) == "clip":
        return FeatureModel(
            name, "clip", folder, fingerprint_of(clip_files(folder, f"{option} {given}", "a CLIP model"))
        )
    check_files(folder, f"{option} {given}", VISION_FILES, "a vision model in transformers' format")
    weights = [*folder.glob("model*.safetensors")] or [*folder.glob("pytorch_model*.bin")]
    return FeatureModel(name, "vision", folder, fingerprint_of(sorted([*folder.glob("*.json"), *weights])))


def model_type(file: Path, option: str) -> str:
    """The `model_type` in a `config.json`. Raises UserError if it cannot be read."""
    try:
        kind = json_file(file).get("model_type")
    except (OSError, NotParsedError) as error:
        raise UserError(f"{option}: the model_type in {file} cannot be read: {one_line(error)}") from error
    if not isinstance(kind, str):
        raise UserError(f"{option}: the model_type in {file} is {shown(kind)}; accepted: a text such as clip")
    return kind


class ClipFeatures:
    """The image embeddings of a CLIP model, not normalised."""

    def __init__(self, tower: ClipTower) -> None:
        self.tower = tower

    def __call__(self, images: Tensor) -> Tensor:
        return self.tower.image_features(images).float()


class Inception:
    """The 2048 features of InceptionV3's last pooling layer, which published FIDs use, by torch-fidelity."""

    def __init__(self, file: Path, device: str | torch.device) -> None:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        weights = read_weights(file, "--features inception")
        # The constructor unpickles its file. For safety it gets an in-memory file that has only tensors.
        tensors = {name: tensor for name, tensor in weights.items() if isinstance(tensor, Tensor)}
        buffer = io.BytesIO()
        torch.save(tensors, buffer)
        buffer.seek(0)
        try:
            model = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=buffer)
        except RuntimeError as error:
            raise UserError(
                f"--features inception: {file} does not fit the network: {str(error).splitlines()[0]}"
            ) from error
        self.model = model.to(device)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        (features,) = self.model(images.mul(255).round().byte())
        return features.float()


class VisionModel:
    """The pooled output of a vision model of transformers, such as DINOv2, with the model's own preprocessing."""

    def __init__(self, folder: Path, device: str | torch.device) -> None:
        from transformers import AutoImageProcessor, AutoModel

        try:
            model, report = AutoModel.from_pretrained(folder, local_files_only=True, output_loading_info=True)
            self.processor: Any = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # every library raises other errors for damaged files
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"--features: {folder} cannot be loaded as a vision model: {reason}") from error
        if missing := sorted(report["missing_keys"]):
            raise UserError(f"--features: the weights in {folder} lack {len(missing)} tensors, {missing[0]} among them")
        self.model, self.folder = frozen(model, device, "float32"), folder

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        inputs = self.processor(images=list(to_bytes(images)), return_tensors="pt")
        pooled = getattr(self.model(**inputs.to(images.device)), "pooler_output", None)
        if pooled is None:
            raise UserError(
                f"--features: the model in {self.folder} has no pooled output; accepted: a model with one, such as DINOv2"
            )
        features: Tensor = pooled.flatten(1).float()
        return features


#: Networks of LPIPS: the prefix of torchvision's weight file, and the value of `net` in the lpips package.
LPIPS_NETWORKS = {"alexnet": "alex", "vgg16": "vgg", "squeezenet1_1": "squeeze"}


def find_lpips(given: str) -> Path:
    """The weight file of LPIPS's network. Raises UserError if there is none, or if the package lpips is not installed."""
    import importlib.util

    wanted = " or ".join(f"{name}*.pth" for name in LPIPS_NETWORKS)
    path = Path(given).absolute()
    files = [path]
    if path.is_dir():
        files = [file for name in LPIPS_NETWORKS for file in sorted(path.glob(f"{name}*.pth"))]
    files = [file for file in files if file.is_file() and file.name.startswith(tuple(LPIPS_NETWORKS))]
    if not files:
        raise UserError(f"--lpips {given}: no {wanted} there; put one of torchvision's weight files there")
    if importlib.util.find_spec("lpips") is None:
        raise UserError(f"--lpips needs the package lpips: {install('lpips')}")
    return files[0]


class Lpips:
    """LPIPS 0.1 (Zhang et al. 2018), by the lpips package, with the network's weights from the user's file."""

    def __init__(self, file: Path, device: str | torch.device) -> None:
        import warnings

        import lpips

        network = next(net for name, net in LPIPS_NETWORKS.items() if file.name.startswith(name))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the package uses deprecated arguments of torchvision
            model = lpips.LPIPS(net=network, pnet_rand=True, verbose=False)
        self._fill(model.net, read_weights(file, "--lpips"), file)
        self.model = frozen(model, device, "float32")

    @staticmethod
    def _fill(network: torch.nn.Module, weights: Mapping[str, Any], file: Path) -> None:
        """Load torchvision's weights. The package splits `features` into slices and keeps the numbers: `slice2.3.weight`."""
        names = {name: "features." + name.partition(".")[2] for name in network.state_dict()}
        renamed = {name: weights[source] for name, source in names.items() if source in weights}
        load_weights(network, renamed, file, "--lpips")

    @torch.no_grad()
    def __call__(self, images: Tensor, others: Tensor) -> Tensor:
        """Distances (B,) between images and others, both (B, 3, Y, X) in [0, 1]."""
        distances: Tensor = self.model(images, others, normalize=True)
        return distances.flatten()
