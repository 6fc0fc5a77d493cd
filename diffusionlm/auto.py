"""The models as those of ``transformers``: importing this module registers them, and the task ``text-diffusion``.

    import diffusionlm.auto
    from transformers import AutoModel, pipeline

    model = AutoModel.from_pretrained("runs/quickstart/model")
    texts = pipeline("text-diffusion", model="runs/quickstart/model")(5, controls="food=Japanese")

``import diffusionlm`` alone registers nothing: it imports neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from transformers import AutoModel, Pipeline
from transformers.pipelines import PIPELINE_REGISTRY

from diffusionlm.config import UserError
from diffusionlm.models.diffusion import DiffusionLM
from diffusionlm.models.io import model_folder, model_tokenizer
from diffusionlm.models.masked import MaskedLM
from diffusionlm.pipelines.auto import pipeline_of
from diffusionlm.pipelines.base import saved_sampling
from diffusionlm.pipelines.placing import DTYPES, placed

TASK = "text-diffusion"


class TextDiffusionPipeline(Pipeline):
    """The task ``text-diffusion`` of ``transformers.pipeline``: samples of a model folder, each a dictionary.

    It is called with a number of texts, with a source for a model that has one, or with several sources, for each of which it
    returns a list. Other arguments, here and in ``transformers.pipeline``, are those of ``BasePipeline.__call__``:
    ``controls``, ``condition``, ``tries``, ``count`` for each source, and sampling settings.

    Of a model of the hub, tokenizer and settings are of its newest revision: a model does not tell the ``revision`` that
    transformers has loaded. To use an older one, name its folder, ``str(model_folder("user/model@REVISION"))``.
    """

    # The tokenizer is loaded below, together with that of the sources.
    _load_tokenizer = _load_processor = _load_image_processor = False  # type: ignore[assignment]
    _load_video_processor = _load_feature_extractor = False  # type: ignore[assignment]

    def __init__(self, model: Any, **given: Any) -> None:
        """Take the tokenizer and the sampling settings from the folder of ``model``.

        Raises:
            UserError: another family of models, an unknown dtype, or a model that was loaded from no folder.
        """
        if not isinstance(model, DiffusionLM | MaskedLM):
            raise UserError(f"{TASK}: expected a diffusion model of this library, got {type(model).__name__}")
        if not model.name_or_path:
            raise UserError(f"{TASK}: expected a model that was loaded from a folder, whose tokenizer and settings are used")
        super().__init__(model, **given)
        folder = model_folder(model.name_or_path)
        tokenizer = model_tokenizer(model, folder)
        self.tokenizer: Any = tokenizer
        name = next((name for name, dtype in DTYPES.items() if dtype == model.dtype), str(model.dtype))
        dtype = placed(model, str(self.device), name)
        torch.nn.Module.to(model, torch.float32)
        self.sampler = pipeline_of(model)(model, tokenizer, saved_sampling(folder), dtype, folder)

    def __call__(self, inputs: int | str | Iterable[str], **changes: Any) -> Any:  # type: ignore[override]
        """Return the samples as a list of dictionaries, of several sources as a list of lists.

        Raises:
            UserError: as ``BasePipeline.__call__``.
        """
        size = {} if self._batch_size is None else {"batch_size": self._batch_size}
        untyped: Any = self
        outputs = untyped.forward(self.preprocess(inputs), **{**size, **self._forward_params, **changes})
        return self.postprocess(outputs)

    def _sanitize_parameters(self, **given: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        return {}, given, {}

    def preprocess(self, inputs: int | str | Iterable[str]) -> dict[str, Any]:  # type: ignore[override]
        """Return the number of samples, or the source or sources."""
        if isinstance(inputs, int):
            return {"count": inputs}
        return {"source": inputs if isinstance(inputs, str) else [*inputs]}

    def _forward(self, inputs: Mapping[str, Any], **changes: Any) -> dict[str, Any]:  # type: ignore[override]
        if both := inputs.keys() & changes.keys():
            raise UserError(f"{TASK}: {both.pop()} is given twice, as the input and by its name")
        return {**changes, **inputs, "rows": self.sampler(**inputs, **changes)}

    def postprocess(self, outputs: Mapping[str, Any]) -> Any:  # type: ignore[override]
        """Return the rows as dictionaries, ``generated_text`` first."""
        rows = []
        for row in outputs["rows"]:
            plain = row.row()
            rows.append({"generated_text": plain.pop("text"), **plain})
        if not isinstance(outputs.get("source"), list):
            return rows
        count = outputs.get("count", 1)
        return [rows[start : start + count] for start in range(0, len(rows), count)]


PIPELINE_REGISTRY.register_pipeline(TASK, TextDiffusionPipeline, AutoModel, type="text")
