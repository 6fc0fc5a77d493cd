"""Draw the figures of docs/how-it-works.md with the library's own schedules and process.

python docs/site/make_figures.py [FOLDER]        the default folder is docs/figures
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from diffusionlm.core.process import VariancePreserving, alpha, over_coordinates, sigma
from diffusionlm.core.schedule import NoiseSchedule, Sqrt
from diffusionlm.files import write_text
from diffusionlm.plots import OKABE_ITO, svg
from diffusionlm.recipe.gumbel import Gumbel
from diffusionlm.recipe.schedules import Cosine, Linear

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURES = Path(__file__).resolve().parents[1] / "figures"
SENTENCE = "the golden lion is a cheap pub near the river ."
OTHERS = """a an and are at bad big blue cafe castle centre city cosy eagle expensive family food fox friendly good green
high in inn low mill museum of old on park pizza place price quiet red restaurant serves small spot town view wine with"""
GAMMAS = (-2.0, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0)
DIMENSION = 32
SCHEDULES: dict[str, NoiseSchedule] = {
    "sqrt, of Diffusion-LM": Sqrt(),
    "cosine": Cosine(),
    "linear, of DDPM": Linear(),
    "gumbel, the default (as trained from gamma -6 to 9)": Gumbel(),
}


def schedules() -> Figure:
    """Draw alpha^2, the share of the signal, over time."""
    from matplotlib.figure import Figure

    figure = Figure((7.0, 3.6), layout="constrained")
    axes = figure.add_subplot(xlabel="time t (0 clean, 1 noise)", ylabel="alpha², share of the signal")
    t = torch.linspace(0, 1, 201, dtype=torch.float64)
    for (name, schedule), style in zip(SCHEDULES.items(), ("-", "--", ":", "-."), strict=True):
        axes.plot(t, alpha(schedule.gamma(t)) ** 2, style, label=name)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def noise() -> Figure:
    """Draw a sentence at each noise level: the nearest word of each noisy vector, and the probability of the right one."""
    from matplotlib.figure import Figure

    sentence = SENTENCE.split()
    words = sorted({*sentence, *OTHERS.split()})
    draw = torch.Generator().manual_seed(0)
    table = torch.nn.functional.normalize(torch.randn(len(words), DIMENSION, generator=draw), dim=-1) * math.sqrt(DIMENSION)
    ids = torch.tensor([words.index(word) for word in sentence])
    eps = torch.randn(len(sentence), DIMENSION, generator=draw)
    figure = Figure((9.0, 3.1), layout="constrained")
    axes = figure.add_subplot(xlim=(-0.5, len(sentence) - 0.5), ylim=(len(GAMMAS) - 0.5, -0.5), ylabel="gamma")
    for row, level in enumerate(GAMMAS):
        gamma = torch.tensor(level, dtype=torch.float64)
        xt = (alpha(gamma) * table[ids] + sigma(gamma) * eps).float()
        posterior = (over_coordinates(alpha(gamma) / sigma(gamma) ** 2, xt) * xt @ table.T).softmax(-1)
        for column, (found, right) in enumerate(zip(posterior.argmax(-1), ids, strict=True)):
            hit = bool(found == right)
            shade = 0.35 + 0.65 * float(posterior[column, found])
            colour = OKABE_ITO[0] if hit else OKABE_ITO[1]
            style = "normal" if hit else "italic"
            axes.text(
                column, row, words[int(found)], ha="center", va="center", fontsize=9, color=colour, alpha=shade, style=style
            )
    axes.set_yticks(range(len(GAMMAS)), [f"{level:g}" for level in GAMMAS])
    axes.set_xticks([])
    axes.set_title(
        f"most probable word of each noisy vector alone ({len(words)} words, {DIMENSION} dimensions): "
        "blue is right, orange italics wrong, pale uncertain", fontsize=9,
    )  # fmt: skip
    return figure


def posterior() -> Figure:
    """Draw the density of one coordinate of x_s, given x_0 and x_t."""
    from matplotlib.figure import Figure

    process = VariancePreserving(Cosine())
    figure = Figure((7.0, 3.6), layout="constrained")
    axes = figure.add_subplot(xlabel="one coordinate of x_s", ylabel="density")
    grid = torch.linspace(-2.0, 2.0, 401, dtype=torch.float64)
    x0, xt, t = torch.tensor([[[1.0]]]).double(), torch.tensor([[[-1.0]]]).double(), torch.tensor([0.8]).double()
    for s, style in ((0.75, "-"), (0.6, "--"), (0.4, "-."), (0.1, ":")):
        gaussian = process.posterior(x0, xt, t, torch.tensor([s]).double())
        mean, deviation = float(gaussian.mean), math.sqrt(float(gaussian.variance))
        axes.plot(grid, torch.distributions.Normal(mean, deviation).log_prob(grid).exp(), style, label=f"s = {s:g}")
    for value, name in ((1.0, "x_0"), (-1.0, "x_t, t = 0.8")):
        axes.axvline(value, color="black", linewidth=0.8)
        axes.annotate(name, (value, 1.0), (3, -10), xycoords=("data", "axes fraction"), textcoords="offset points", fontsize=8)
    axes.set_ylim(0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="upper center")
    return figure


def main(folder: str | Path = FIGURES) -> None:
    """Draw all figures into ``folder``."""
    for draw in (schedules, noise, posterior):
        write_text(Path(folder) / f"{draw.__name__}.svg", svg(draw))


if __name__ == "__main__":
    main(*sys.argv[1:])
