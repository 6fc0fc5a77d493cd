"""Control branches: a trainable copy of a frozen model's first layers reads a condition, and changes the model's layers.

    c                 what the network receives of the condition: features, or an encoder's states
    h'_i              the copy's stream after layer i; its first layer reads the network's inputs + A c
    h_i + Z_i h'_i    the model's stream after layer i                    (ControlNet, Zhang et al. 2023, section 3.1)

The projections Z start at zero: before the first step the model computes what its base does, to the bit. A starts at random:
from zero, as in ControlNet, the condition reaches the Z only once A has moved, and a short run learns less. A folder holds the
branch, in ``control_branch.safetensors``; the base is frozen and is found by ``adapter.json``. B batch, L positions, W width.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from diffusionlm.config import UserError, plain_name
from diffusionlm.models.adapters import AddedParts
from diffusionlm.models.backbones import LayeredNetwork, Sublayers
from diffusionlm.models.conditions import Condition, Conditioning, at_positions, one_sentence
from diffusionlm.models.diffusion import WordVectorModel, WordVectorSpec
from diffusionlm.models.spec import ModelSpec, Splits

SIGNAL = 0.5  # standard deviation of A at the start; the streams start at 1


@dataclass(frozen=True)
class ControlBranch(AddedParts, name="control-branch"):
    """A copy of the first layers of a frozen model that reads a condition (ControlNet, Zhang et al. 2023).

    Args:
        condition: what is read: ``label``, ``number``, ``tags``, ``source``, or ``several`` of them.
        layers: how many layers are copied, of each stream and of the queries where a backbone has these.
    """

    file: ClassVar[str] = "control_branch.safetensors"
    parts: ClassVar[tuple[str, ...]] = ("branch.", "condition.")

    condition: Condition
    layers: int = 1

    def __post_init__(self) -> None:
        self.expect("1 to 1000", "layers")
        if self.condition.prefix_size:
            name = plain_name(type(self.condition))
            raise UserError(f"condition: a branch reads no prefix of the text, as {name!r} has; take 'source'")

    def fitted(self, splits: Splits) -> Self:
        try:
            with one_sentence(self.condition, "the training rows"):
                condition = self.condition.fitted(splits["train"])
        except UserError as error:
            raise UserError(str(error).replace("model.condition", "adapter.condition", 1)) from None
        return replace(self, condition=condition)

    def of(self, model: PreTrainedModel) -> Self:
        settings: Any = model.settings
        return replace(self, condition=settings.condition)

    def adapted(self, spec: ModelSpec) -> ModelSpec:
        """Return the settings of the base with the condition. Raises UserError where it cannot have one, or has another."""
        if not isinstance(spec, WordVectorSpec):
            name = plain_name(type(spec))
            raise UserError(f"adapter: 'control-branch' is for models 'diffusion' and 'masked', and the base is {name!r}")
        if spec.condition is not None:
            raise UserError(
                "adapter: 'control-branch' gives a condition to a model that was trained without one, "
                f"and the base has {spec.condition.key!r}; fine-tune it with --adapter lora, or take another base"
            )
        return replace(spec, condition=self.condition)  # type: ignore[type-var]

    def join(self, model: Any) -> None:
        """Give ``model`` the condition and a new branch."""
        settings, network = self.adapted(model.settings), model.network
        if not isinstance(network, LayeredNetwork):
            name = plain_name(type(model.settings.backbone))
            raise UserError(
                f"adapter: 'control-branch' cannot read the layers of the backbone {name!r}; expected a base with "
                "'transformer', 'leave-one-out', or another whose network is a LayeredNetwork"
            )
        model.settings = settings
        model.condition = self.condition.build(model)
        model.branch = Branch(self, network, model)
        for module in [*model.condition.modules(), *model.branch.new_modules()]:
            model._init_weights(module)
        model.condition.to(model.device)
        model.branch.to(model.device)
        model.train(model.training)


class Branch(nn.Module):
    """The branch of a model: its own layers, the projection of the condition's features, and those of its streams."""

    network: LayeredNetwork
    length_prior: Tensor

    def __init__(self, spec: ControlBranch, network: LayeredNetwork, model: WordVectorModel) -> None:
        """Copy the first layers of ``network``. Raises UserError where it has fewer layers."""
        super().__init__()
        condition, width = spec.condition, model.settings.backbone.width
        self.network = first_layers(network, spec.layers, width if condition.has_states else 0)
        self.signal = nn.Linear(condition.size, width, bias=False) if condition.size else None
        if self.signal is not None:
            nn.init.normal_(self.signal.weight, std=SIGNAL)
        self.projections = nn.ModuleList(
            [nn.ModuleList([zero_linear(width) for _ in stack]) for stack in self.network.stacks()]
        )
        # Lengths that a condition predicts start from those of the training texts.
        self.length = nn.Parameter(torch.zeros(())) if condition.has_states and model.explicit_length else None
        counts = torch.tensor(model.config.length_counts, dtype=torch.float64).clamp(min=0.01).log().float()
        longest = model.config.max_tokens + 1 - len(counts)
        prior = nn.functional.pad(counts, (0, longest), value=float(torch.tensor(0.01).log()))
        self.register_buffer("length_prior", prior, persistent=False)

    def new_modules(self) -> list[nn.Linear]:
        """Return the layers that are not copied, and read an encoder's states."""
        return [layer.states for layer in self.network.modules() if isinstance(layer, Sublayers) and layer.states is not None]

    def weigh_lengths(self, given: Conditioning) -> Conditioning:
        """Return ``given`` with its logits of lengths scaled, by 0 at the start, and added to those of the training texts."""
        if given.length_logits is None or self.length is None:
            return given
        return replace(given, length_logits=self.length_prior + self.length * given.length_logits)

    def forward(
        self, network: nn.Module, inputs: Tensor, t: Tensor, gamma: Tensor, mask: Tensor | None, given: Conditioning
    ) -> Tensor:
        """Return the output of the base's ``network``, whose layers the branch changes as the condition ``given`` says."""
        signal = None
        if self.signal is not None and given.features is not None:
            signal = self.signal(at_positions(given.features, inputs.shape[1]).to(inputs))
        stacks = self.network.hidden(inputs, gamma, mask, given.context, signal)
        residuals = [
            [project(stream) for project, stream in zip(projections, streams, strict=True)]  # type: ignore[call-overload]
            for projections, streams in zip(self.projections, stacks, strict=True)
        ]
        output: Tensor = network(inputs, t, gamma, mask, None, residuals)
        return output


def first_layers(network: LayeredNetwork, layers: int, states: int) -> LayeredNetwork:
    """Return a copy of the first ``layers`` of each stack of a network, without its output.

    Its layers attend to an encoder's states of the width ``states``, if it is not 0. Raises UserError for too many layers.
    """
    if layers > (most := max(map(len, network.stacks()))):
        raise UserError(f"adapter.layers: expected at most {most}, the layers of the base, got {layers}")
    part = copy.deepcopy(network).requires_grad_(True)
    for stack in part.stacks():
        del stack[layers:]
    part.norm, part.down = nn.Identity(), nn.Identity()
    for layer in part.modules() if states else ():
        if isinstance(layer, Sublayers):
            layer.states = nn.Linear(states, 2 * states, bias=False)
    return part


def zero_linear(width: int) -> nn.Linear:
    """Return a projection of a stream whose weights are 0."""
    layer = nn.Linear(width, width, bias=False)
    nn.init.zeros_(layer.weight)
    return layer
