"""A joint head (``models.joint``) as an adapter: a folder that holds the head alone, beside its base model.

A head is trained behind a frozen denoiser, so the weights of this base are not saved again; ``adapter.json`` names its folder.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from diffusionlm.config import UserError, plain_name
from diffusionlm.models.adapters import AddedParts
from diffusionlm.models.diffusion import DiffusionLM, ModelConfig
from diffusionlm.models.joint import JointHead
from diffusionlm.models.spec import ModelSpec


@dataclass(frozen=True)
class JointAdapter(AddedParts, name="joint-head"):
    """A joint head behind a frozen diffusion model, for few evaluations; ``distill`` trains it.

    Args:
        width: of the head's layers.
    """

    file: ClassVar[str] = "joint_head.safetensors"
    parts: ClassVar[tuple[str, ...]] = ("joint.",)
    adds_joint: ClassVar[bool] = True

    width: int = 192

    def __post_init__(self) -> None:
        self.expect("1 to 10000", "width")

    def adapted(self, spec: ModelSpec) -> ModelSpec:
        """Return the settings of the base with a joint head. Raises UserError where it cannot have one, or has one."""
        if not isinstance(spec, ModelConfig):
            raise UserError(f"adapter: 'joint-head' is for a model 'diffusion', and the base is {plain_name(type(spec))!r}")
        if spec.joint_width:
            raise UserError("adapter: 'joint-head' is for a base without a joint head, and this one has model.joint_width")
        return replace(spec, joint_width=self.width)

    def join(self, model: Any) -> None:
        """Give ``model`` a new head; its config, which is saved with the head, remains the base's."""
        if not isinstance(model, DiffusionLM):
            raise UserError(f"adapter: 'joint-head' is for a diffusion model, got a {model.config.model_type} model")
        model.settings = self.adapted(model.settings)  # type: ignore[assignment]
        model.joint = JointHead(model.config.vocabulary, model.settings.dimension, self.width)
        for module in model.joint.modules():
            model._init_weights(module)
        model.joint.reset()
        model.joint.to(model.device).train(model.training)
