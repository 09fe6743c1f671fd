"""Which model an evaluation is asked for: a folder, an adapter, a hub id, a run, or an endpoint."""

from __future__ import annotations

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from opd.config import locate, part
from opd.errors import DataError, EngineError, first_line
from opd.learner.model import PRECISIONS, context_length, load_causal
from opd.rollout.chat import Chat
from opd.rollout.endpoint import Endpoint
from opd.rollout.engine import Engine
from opd.rollout.sampler import Drawer, Sampler
from opd.rows import sha256_of

ADAPTER = "adapter_config.json"
SETTINGS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "chat_template.jinja",
)
"""Files beside the weights that decide what a model says."""
FETCHED = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")


@part
class Serving:
    """How a model is served to an evaluation."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """What an engine of ours computes in; an endpoint has chosen already."""
    thinking: bool | None = None
    """Passed to the chat template as `enable_thinking`; None leaves the template's default."""
    max_length: int | None = None
    """Prompt and response tokens together; None takes the model's whole context."""


class Candidate(ABC):
    """A model that is to be measured."""

    name: str
    """As the user gave it."""

    @abstractmethod
    def identity(self, serving: Serving) -> Mapping[str, object]:
        """What tells this model from every other, as far as it can be known: for the protocol."""

    @abstractmethod
    def context(self, serving: Serving) -> int | None:
        """Prompt and response tokens that it takes together; None where that is not told."""

    @abstractmethod
    def opened(self, serving: Serving, engine: Engine, seed: int) -> AbstractContextManager[Drawer]:
        """What draws its responses, while the context lasts. Raises EngineError."""


@dataclass(frozen=True)
class Weights(Candidate):
    """A model folder on disk, with an adapter on it or none."""

    name: str
    folder: Path
    adapter: Path | None = None

    @property
    def tokenizer(self) -> Path:
        own = self.adapter is not None and (self.adapter / "tokenizer_config.json").exists()
        return self.adapter if own and self.adapter is not None else self.folder

    def identity(self, serving: Serving) -> Mapping[str, object]:
        chat = Chat.open(str(self.tokenizer), serving.thinking)
        template = str(chat.tokenizer.chat_template)
        adapter = {"adapter_sha256": weights_hash(self.adapter)} if self.adapter else {}
        return {
            "id": self.name,
            "sha256": weights_hash(self.folder),
            **adapter,
            "settings_sha256": files_hash(self.settings()),
            "chat_template_sha256": hashlib.sha256(template.encode()).hexdigest(),
            "dtype": serving.dtype,
        }

    def settings(self) -> list[Path]:
        folders = (self.folder, self.adapter) if self.adapter else (self.folder,)
        paths = [folder / name for folder in folders for name in (*SETTINGS, ADAPTER)]
        return [path for path in paths if path.exists()]

    def context(self, serving: Serving) -> int:
        try:
            length = context_length(str(self.folder))
        except (OSError, ValueError, AttributeError) as error:
            raise DataError(
                f"{self.name}: its config.json tells no context length "
                f"({first_line(error)}); give a causal language model's folder"
            ) from error
        return min(serving.max_length or length, length)

    @contextmanager
    def opened(self, serving: Serving, engine: Engine, seed: int) -> Iterator[Drawer]:
        chat = Chat.open(str(self.tokenizer), serving.thinking)
        length = self.context(serving)
        with self.merged(serving) as folder:
            engine.open(str(folder), dtype=serving.dtype, max_length=length, seed=seed)
            try:
                yield Sampler(engine, chat, length, seed)
            finally:
                engine.close()

    @contextmanager
    def merged(self, serving: Serving) -> Iterator[Path]:
        """A plain model folder; an adapter is folded into its base, in float32, on the way."""
        if self.adapter is None:
            yield self.folder
            return
        import torch
        from peft import PeftModel
        from transformers import GenerationConfig

        base = load_causal(str(self.folder), dtype=torch.float32)
        try:
            model = PeftModel.from_pretrained(base, str(self.adapter)).merge_and_unload()
        except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
            raise EngineError(
                f"{self.name}: the adapter does not fit onto {self.folder} "
                f"({first_line(error)}); give the base that it was trained on"
            ) from error
        with TemporaryDirectory(prefix="opd-merged-") as folder:
            model.to(PRECISIONS[serving.dtype]).save_pretrained(folder)
            if (self.folder / "generation_config.json").exists():
                GenerationConfig.from_pretrained(str(self.folder)).save_pretrained(folder)
            yield Path(folder)


@dataclass(frozen=True)
class Remote(Candidate):
    """A model behind an OpenAI-compatible server."""

    name: str
    url: str
    model: str
    endpoint: Endpoint
    """Its own: two models may stand behind two servers."""

    def identity(self, serving: Serving) -> Mapping[str, object]:
        return {"id": self.name, "served": self.connected(serving).model}

    def context(self, serving: Serving) -> int | None:
        told = self.connected(serving).context_length
        known = [length for length in (told, serving.max_length) if length is not None]
        return min(known, default=None)

    @contextmanager
    def opened(self, serving: Serving, engine: Engine, seed: int) -> Iterator[Drawer]:
        endpoint = self.connected(serving)
        endpoint.seed = seed
        yield endpoint

    def connected(self, serving: Serving) -> Endpoint:
        """The endpoint, which is asked for its models once."""
        if not self.endpoint.model:
            self.endpoint.open(self.url, self.model, thinking=serving.thinking)
        return self.endpoint


def candidate(name: str, endpoint: Endpoint) -> Candidate:
    """The model that `name` means. Raises DataError where there is none, EngineError where the hub
    does not give it."""
    if name.startswith(("http://", "https://")):
        url, _, model = name.partition("#")
        return Remote(name, url, model, replace(endpoint))
    folder = Path(locate(name))
    if not folder.is_dir():
        return Weights(name, fetched(name))
    if (folder / "recipe.yaml").exists():
        return Weights(name, final_weights(folder))
    if (folder / ADAPTER).exists():
        return Weights(name, base_of(folder), folder)
    if not (folder / "config.json").exists():
        raise DataError(
            f"{name}: is no model folder (config.json), adapter ({ADAPTER}) or run (recipe.yaml); "
            "give one of these, a hub id, or http://host:port/v1#name"
        )
    return Weights(name, folder)


def slug(name: str) -> str:
    """A model's name as one that a folder may have."""
    return re.sub(r"[^\w.]+", "-", name).strip("-.") or "model"


def final_weights(run: Path) -> Path:
    if not (run / "model" / "config.json").exists():
        raise DataError(
            f"{run}: is a run that has not ended, so it has no final weights; run "
            f"`opd train {run / 'recipe.yaml'}` to its end"
        )
    return run / "model"


def base_of(adapter: Path) -> Path:
    """The folder of the model that an adapter changes."""
    try:
        base = json.loads((adapter / ADAPTER).read_text())["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError):
        base = None
    if not isinstance(base, str) or not base:
        raise DataError(
            f"{adapter / ADAPTER}: names no base model; set base_model_name_or_path there"
        )
    place = Path(locate(base))
    return place if place.is_dir() else fetched(base)


def fetched(name: str) -> Path:
    """The folder of a hub model, fetched when it is not there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(snapshot_download(name, allow_patterns=list(FETCHED)))
    except HFValidationError:
        cause = "it is no hub id either"
    except (OSError, ValueError, HfHubHTTPError) as error:
        cause = first_line(error)
    raise EngineError(
        f"{name}: is no folder here, and the hub does not give it ({cause}); check the name and "
        "the connection"
    )


def weights_hash(folder: Path) -> str:
    """SHA-256 of the weights: of the file where it is one, else of the list of theirs."""
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    if not files:
        raise DataError(f"{folder}: holds no weights (*.safetensors); give the whole model")
    return sha256_of(files[0]) if len(files) == 1 else files_hash(files)


def files_hash(files: list[Path]) -> str:
    listed = "".join(f"{sha256_of(path)}  {path.name}\n" for path in files)
    return hashlib.sha256(listed.encode()).hexdigest()
