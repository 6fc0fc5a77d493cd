"""Diffusion on word vectors in one file: ``diffusionlm.core``, a small Transformer, a training loop, sampling.

    w -> x_0 = E_w -> x_t = alpha x_0 + sigma eps -> network -> token logits -> cross-entropy with w       (training)
    x_1 = eps -> ... -> x_s ~ q(x_s | x_t, softmax(logits) E) -> ... -> x_0 -> argmax of the logits         (sampling)

No data set, trainer, pipeline or config: what the rest of the library adds is convenience, control and quality. Half a minute
on one CPU core.

    python examples/minimal.py [STEPS]
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffusionlm.core.model import DenoisingModel
from diffusionlm.core.process import VariancePreserving
from diffusionlm.core.sampler import DDPM, Denoised, sample
from diffusionlm.core.schedule import Sqrt

STAFF = ("The waiter", "The cook", "My sister", "Our neighbour", "The old baker", "A tourist")
VERBS = {"brings": ("a bowl of soup", "the bill", "some warm bread"), "likes": ("the quiet garden", "spicy noodles", "jazz")}
TEXTS = [f"{who} {verb} {what} ." for who in STAFF for verb, objects in VERBS.items() for what in objects]
LENGTH, DIMENSION, WIDTH = 10, 16, 64  # tokens of a text, coordinates of a word vector, width of the network


class Network(nn.Module):
    """A Transformer encoder from latents (B, L, inputs) and the noise level gamma to token logits (B, L, V)."""

    def __init__(self, inputs: int, vocabulary: int) -> None:
        super().__init__()
        self.first, self.positions = nn.Linear(inputs + 1, WIDTH), nn.Parameter(0.02 * torch.randn(LENGTH, WIDTH))
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, dropout=0.0, batch_first=True, norm_first=True)
        self.layers, self.last = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(WIDTH, vocabulary)

    def forward(self, latents: Tensor, t: Tensor, gamma: Tensor, mask: Tensor | None) -> Tensor:
        """Return the logits; ``gamma`` is (B,)."""
        level = gamma[:, None, None].expand(*latents.shape[:2], 1) / 10
        return self.last(self.layers(self.first(torch.cat([latents, level], -1)) + self.positions))


class TinyDiffusion(DenoisingModel):
    """The denoising model of the library with the network above; it predicts token logits."""

    prediction, evidence = "logits", 50.0
    reads_evidence = self_conditions = learned_variance = False
    condition = None

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.set_vectors(vocabulary, DIMENSION, "normalised")
        self.network = Network(DIMENSION, vocabulary)
        self.process = VariancePreserving(Sqrt())


def train(model: TinyDiffusion, ids: Tensor, steps: int) -> None:
    """Minimise the cross-entropy of the tokens at noise levels drawn uniformly from t = 1/T, ..., 1."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    decay = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, steps)
    for step in range(steps):
        batch = ids[torch.randint(len(ids), (64,))]
        t = model.process.schedule.training_times(torch.rand(len(batch)))
        xt = model.process.noise(model.encode(batch), t).float()
        loss = F.cross_entropy(model.token_logits(xt, t).flatten(0, 1), batch.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
        if step % 200 == 0:
            print(f"step {step}: cross-entropy {loss:.3f} nats per token", file=sys.stderr)


@torch.no_grad()
def generate(model: TinyDiffusion, count: int, steps: int = 50) -> Tensor:
    """Return the ids (count, L) of samples: ancestral sampling from pure noise."""

    def denoise(xt: Tensor, t: Tensor) -> Denoised:
        denoised: Denoised = model(xt, t)
        return denoised

    *_, last = sample(denoise, model.process, torch.randn(count, LENGTH, DIMENSION), sampler=DDPM(), steps=steps)
    return last.denoised.logits.argmax(-1)


def main(steps: str = "1500") -> None:
    """Train on a few sentences and print samples, marked where the sentence is none of those it was trained on."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    held_out = TEXTS[::7]
    training = [text for text in TEXTS if text not in held_out]
    words = ["", *sorted({word for text in TEXTS for word in text.split()})]  # "" is padding, a word like others here
    rows = [[words.index(word) for word in text.split()] for text in training]
    model = TinyDiffusion(len(words))
    train(model, torch.tensor([row + [0] * (LENGTH - len(row)) for row in rows]), int(steps))
    for row in generate(model, 12).tolist():
        text = " ".join(words[i] for i in row).strip()
        kind = "trained on" if text in training else "new" if text in held_out else "no sentence of this language"
        print(f"{text}  ({kind})")


if __name__ == "__main__":
    main(*sys.argv[1:])
