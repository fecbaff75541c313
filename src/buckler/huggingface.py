"""A folder of Hugging Face's as an encoder: `config.json`, and weights that are safetensors.

What runs is the code of transformers that is installed, never code or pickled weights from the folder, and nothing is
fetched. Images are resized and normalised inside the model as its own processor would, all of them to a square without
a crop.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from buckler.imported import BadSubject, in_a_line

Settings = Mapping[str, Any]
TOKENS = ("cls_token", "class_embedding")
"""What the parameter is called that a class token begins as."""


class Seen(nn.Module):
    """A vision model as an encoder: images `(B, C, H, W)` in [0, 1] of any size, features `(B, D)`.

    The features are the image embedding of a model of images and texts; else the pooled output, where its weights were
    in the folder; else the class token of the last layer, and the mean over places where there is none. Grey images
    are repeated for a model of three channels.
    """

    def __init__(self, model: Any, config: Settings, processor: Settings, *, pooled: bool) -> None:
        super().__init__()
        self.model, self.pooled = model, pooled
        self.token = any(name.endswith(TOKENS) for name, _ in model.named_parameters())
        self.together = "get_image_features" in dir(model)
        self.channels = int(config.get("num_channels") or 3)
        cropped = processor.get("crop_size") if processor.get("do_center_crop", True) else None
        self.size = _size(cropped or processor.get("size") or config.get("image_size"))
        self.how = "bicubic" if processor.get("resample") == 3 else "bilinear"
        normal = processor.get("do_normalize", True) and "image_mean" in processor
        mean, deviation = (processor["image_mean"], processor["image_std"]) if normal else (0.0, 1.0)
        self.mean, self.deviation = (
            nn.Buffer(torch.tensor(value, dtype=torch.float32).reshape(-1, 1, 1)) for value in (mean, deviation)
        )

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] not in (1, self.channels):
            raise ValueError(f"expected images of {self.channels} channels (B, C, H, W), got {tuple(x.shape)}")
        if self.size is not None and x.shape[2:] != self.size:
            x = F.interpolate(x, self.size, mode=self.how, align_corners=False, antialias=True).clamp(0, 1)
        x = (x.expand(-1, self.channels, -1, -1) - self.mean) / self.deviation
        if self.together:
            out = self.model.get_image_features(pixel_values=x)
            return out if isinstance(out, Tensor) else out["pooler_output"]
        out = self.model(pixel_values=x)
        found = out.get("image_embeds")
        if found is None and self.pooled:
            found = out.get("pooler_output")
        if found is not None:
            return found.flatten(1)
        last = out["last_hidden_state"]
        if last.ndim == 4:
            return last.mean((2, 3))
        return last[:, 0] if self.token else last.mean(1)


def hugging_face(folder: Path) -> Seen:
    """The encoder in `folder`, evaluating, in float32. `BadSubject` for a folder without a config or with pickled
    weights only, a model that takes no images, weights that are missing, and where transformers is not installed."""
    if not (folder / "config.json").is_file():
        raise BadSubject(
            f"encoder: expected a config.json in {folder}, got none: name a folder that save_pretrained wrote"
        )
    if not any((folder / f"model.safetensors{more}").is_file() for more in ("", ".index.json")):
        pickled = sorted(file.name for file in folder.glob("*.bin"))
        got = f"{pickled[0]}, which is pickled and is not opened" if pickled else "none"
        raise BadSubject(
            f"encoder: expected model.safetensors in {folder}, got {got}: "
            "write it with save_pretrained(folder, safe_serialization=True)"
        )
    if find_spec("transformers") is None:
        raise BadSubject(
            "encoder: expected the package transformers to read a folder of Hugging Face's, got none: "
            "install it with pip install 'transformers>=5'"
        )
    config, processor = _read(folder / "config.json"), _processor(folder)
    _sharded(folder)
    model, info = _loaded(folder, config)
    missing = sorted(name for name in info["missing_keys"] if "pooler" not in name)
    if missing:
        raise BadSubject(
            f"encoder: expected the weights of a {type(model).__name__} in {folder}, got none for {len(missing)} "
            f"tensors, such as {missing[0]}: they would be drawn by chance; save the whole model"
        )
    taken = str(model.main_input_name)
    if taken != "pixel_values" and "get_image_features" not in dir(model):
        raise BadSubject(f"encoder: expected a model of images in {folder}, got a {type(model).__name__} of {taken}")
    vision = model.config.to_dict()
    vision = cast(Settings, vision.get("vision_config") or vision)
    try:
        return Seen(model, vision, processor, pooled=not info["missing_keys"]).eval()
    except (TypeError, ValueError, KeyError) as error:
        raise BadSubject(
            f"encoder: expected sizes, a mean and a deviation in the settings of {folder}, got {error}"
        ) from error


def untrained(folder: Path) -> Seen:
    """Another encoder as that in `folder` is built, with weights drawn by chance and the same features: what `body` may
    return for it. Raises as `hugging_face` does, which reads the folder first."""
    made = hugging_face(folder)
    made.model = type(made.model)(made.model.config)
    return made.eval()


def _loaded(folder: Path, config: Settings) -> tuple[Any, Mapping[str, Any]]:
    """The model and what transformers says of its weights; what is missing is drawn, always the same."""
    transformers: Any = import_module("transformers")
    more = {"mask_ratio": 0.0} if "mask_ratio" in config else {}  # a masked autoencoder hides nothing where it is used
    try:
        named = [*(config.get("architectures") or []), ""][0]
        maker = getattr(transformers, named if named.endswith("VisionModelWithProjection") else "AutoModel")
        with _quietly(transformers.utils.logging), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return maker.from_pretrained(
                str(folder),
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
                dtype=torch.float32,
                attn_implementation="eager",  # one named in the config might be fetched
                **more,
            )
    except Exception as error:  # a damaged or strange folder fails in many ways, and the answer is one
        raise BadSubject(
            f"encoder: expected a folder that transformers {transformers.__version__} loads, got {folder}: "
            f"{in_a_line(str(error)) or type(error).__name__}"
        ) from error


@contextmanager
def _quietly(logging: Any) -> Generator[None, None, None]:
    """What transformers would say of weights that are missing is said here; its settings are set back."""
    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


def _read(path: Path) -> Settings:
    try:
        found = json.loads(path.read_text("utf8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadSubject(f"encoder: expected settings as JSON in {path}, got {in_a_line(str(error))}") from error
    if not isinstance(found, dict):
        raise BadSubject(f"encoder: expected settings as a JSON object in {path}, got a {type(found).__name__}")
    return cast(Settings, found)


def _sharded(folder: Path) -> None:
    """Refuse an index of weights in several files that are not all safetensors beside it: transformers would open any,
    pickled ones too."""
    index = folder / "model.safetensors.index.json"
    files = _read(index).get("weight_map") if index.is_file() else {}
    names = [str(name) for name in cast(Settings, files).values()] if isinstance(files, dict) else ["none"]
    for name in sorted({*names}):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise BadSubject(
                f"encoder: expected safetensors files beside it in the weight_map of {index}, got {in_a_line(name)}: "
                "write the folder with save_pretrained(folder, safe_serialization=True)"
            )


def _processor(folder: Path) -> Settings:
    """How images are to be prepared, where the folder says so."""
    if (folder / "preprocessor_config.json").is_file():
        return _read(folder / "preprocessor_config.json")
    whole = _read(folder / "processor_config.json") if (folder / "processor_config.json").is_file() else {}
    return cast(Settings, whole.get("image_processor") or {})


def _size(said: Any) -> tuple[int, int] | None:
    """Height and width out of the ways in which they are written."""
    if isinstance(said, Mapping):
        either = said.get("shortest_edge")
        said = [said.get("height") or either, said.get("width") or either]
    if said is None:
        return None
    height, width = (said, said) if isinstance(said, int) else said
    return int(height), int(width)
