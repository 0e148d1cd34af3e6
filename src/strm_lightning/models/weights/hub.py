"""Models as folders or repositories of the Hugging Face Hub: options, weights and a model card."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import ModelCard, ModelCardData, ModelHubMixin, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled
from safetensors.torch import save_file
from torch import nn

from strm_lightning.errors import InputError, MissingFileError
from strm_lightning.fileio import write_atomically
from strm_lightning.models.weights.loading import read_state_dict

_CONFIG, _WEIGHTS = "config.json", "model.safetensors"
_NO_PRETRAINING = {"pretrained": False, "weights": None}  # the weights of the file replace those of the backbone
_Model = TypeVar("_Model", bound="HubModel")


class HubModel(ModelHubMixin):
    """Methods `from_pretrained`, ``save_pretrained`` and ``push_to_hub`` of `STRM`, with ``huggingface_hub``'s mixin.

    A saved model is a folder with ``config.json`` (the arguments of the class), ``model.safetensors`` and ``README.md``
    (the model card, with a test of the model if ``model_card_kwargs={"results": ...}`` is given). Reading it executes
    no code. A matching method of your own is stored by name: import it before `from_pretrained`.
    """

    @classmethod
    def from_pretrained(
        cls: type[_Model],
        pretrained_model_name_or_path: str | Path,
        *,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
        **model_kwargs: Any,
    ) -> _Model:
        """Load a model from a folder, or from a repository of the Hub.

        Args:
            pretrained_model_name_or_path: a folder that ``save_pretrained`` wrote, or a repository, ``user/name``.
            force_download: download files that are in the cache already.
            token: access token for private repositories; None for that of ``hf auth login``.
            cache_dir: folder of downloaded files.
            local_files_only: use downloaded files only.
            revision: branch, tag or commit of the repository.
            **model_kwargs: arguments that replace those of ``config.json``.

        Returns:
            The model, in evaluation mode.

        Raises:
            MissingFileError: there is no such folder or repository, or the Hub cannot be reached.
            InputError: the folder contains no model, or the weights are not those of ``config.json``.
        """
        name = str(pretrained_model_name_or_path)
        options = {
            "force_download": force_download,
            "token": token,
            "cache_dir": cache_dir,
            "local_files_only": local_files_only,
            "revision": revision,
        }
        config, weights = (_file(name, file, options) for file in (_CONFIG, _WEIGHTS))
        try:
            arguments = dict(json.loads(config.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise InputError(f"model {name}: {_CONFIG} is damaged ({error})") from error
        try:
            model = cls(**arguments | model_kwargs | _NO_PRETRAINING)
        except TypeError as error:
            if "unexpected keyword argument" not in str(error):
                raise
            raise InputError(f"model {name}: {_CONFIG} does not fit this version of the package ({error})") from error
        assert isinstance(model, nn.Module)
        try:
            model.load_state_dict(read_state_dict(weights))
        except RuntimeError as error:
            raise InputError(f"model {name}: {_WEIGHTS} does not have the tensors of the model in {_CONFIG}") from error
        model.eval()
        return model

    def _save_pretrained(self, save_directory: Path) -> None:
        assert isinstance(self, nn.Module)
        config = dict(self._hub_mixin_config or {}) | _NO_PRETRAINING  # type: ignore[arg-type]  # always a dict here
        write_atomically(save_directory / _CONFIG, json.dumps(config, sort_keys=True, indent=2) + "\n")
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        save_file(state, save_directory / _WEIGHTS, metadata={"format": "pt"})

    def generate_model_card(
        self,
        results: Mapping[str, Any] | None = None,
        license: str | None = None,  # noqa: A002 - the Hub's word
    ) -> ModelCard:
        """Return the model card.

        Args:
            results: content of the ``results.json`` of a test of this model; the text contains its protocol card.
            license: identifier of the licence, such as ``apache-2.0``; None leaves it open.
        """
        config = dict(self._hub_mixin_config or {})  # type: ignore[arg-type]
        data = ModelCardData(
            library_name="strm-lightning",
            license=license,
            pipeline_tag="video-classification",
            tags=["few-shot-learning", "action-recognition", str(config.get("matching", "trm"))],
        )
        return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{_text(config, results)}")


def _file(model: str, name: str, options: dict[str, Any]) -> Path:
    """Return a file of a folder or a repository."""
    if Path(model).is_dir():
        path = Path(model) / name
        if not path.is_file():
            raise InputError(f"model {model}: the folder contains no {name}; save_pretrained writes it")
        return path
    try:
        return Path(hf_hub_download(model, name, **options))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise MissingFileError(
            f"model {model}: no such folder, and the Hub has no such repository or cannot be reached ({reason})"
        ) from error


def _text(config: Mapping[str, Any], results: Mapping[str, Any] | None) -> str:
    method = config.get("matching", "trm")
    lines = [
        f"# Few-shot action recognition: {method} on {config.get('backbone', 'a timm backbone')}",
        "",
        "A model of strm-lightning. It recognises actions in videos from a few example clips of each.",
        "",
        "```python",
        "from strm_lightning import STRM",
        "",
        'model = STRM.from_pretrained("FOLDER_OR_REPOSITORY")',
        "logits = model(support, query)  # uint8 clips [N, K, L, 3, H, W] and [Q, L, 3, H, W] -> [Q, N]",
        "```",
        "",
        "## Test",
        "",
    ]
    if results is None:
        return "\n".join([*lines, "No test is recorded.", ""])
    card = {name: dict(value) for name, value in results["card"].items()}
    card["checkpoint"].pop("path", None)
    for part in (card["data"], card["checkpoint"].get("training") or {}):
        part.update({key: Path(str(part[key])).name for key in ("root", "lists") if part.get(key)})  # no paths
    rows = results["sweep"] or [results]
    lines += ["| episodes | accuracy | 95 % interval |", "|---|---|---|"]
    lines += [f"| {row['way']}-way {row['shot']}-shot | {row['accuracy']:.1%} | ± {row['ci95']:.1%} |" for row in rows]
    lines += [
        "",
        f"{results['episodes']} episodes of {card['data']['classes']} classes that the training does not contain, if "
        "`data` and `checkpoint.training` below name the same split. The interval covers these episodes of one trained "
        "model.",
        "",
        "Protocol card:",
        "",
        "```json",
        json.dumps(card, indent=2, default=str),
        "```",
        "",
    ]
    return "\n".join(lines)
