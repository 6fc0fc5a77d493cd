"""Controls of generated text: one file per control, combined by expressions."""

from diffusionlm.controls.attribute import Attribute
from diffusionlm.controls.binding import Binding, annotator_for
from diffusionlm.controls.classifier import Classifier
from diffusionlm.controls.control import All, AnyOf, CompiledControl, Control, Not, Outcome, Weighted, outcomes
from diffusionlm.controls.expression import read_control, read_controls, target_rows
from diffusionlm.controls.infill import Infill
from diffusionlm.controls.length import Length
from diffusionlm.controls.parts_of_speech import PartsOfSpeech
from diffusionlm.controls.pattern import Pattern
from diffusionlm.controls.prefix import Prefix
from diffusionlm.controls.reward import Reward
from diffusionlm.controls.span import Span
from diffusionlm.controls.tree import Tree
from diffusionlm.controls.words import Words

__all__ = [
    "All", "AnyOf", "Attribute", "Binding", "Classifier", "CompiledControl", "Control", "Infill", "Length", "Not", "Outcome",
    "PartsOfSpeech", "Pattern", "Prefix", "Reward", "Span", "Tree", "Weighted", "Words", "annotator_for", "outcomes",
    "read_control", "read_controls", "target_rows",
]  # fmt: skip
