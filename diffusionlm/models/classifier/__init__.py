"""Classifiers over latents, for guidance by gradients: config and network, heads, objective, accuracy, templates."""

from diffusionlm.models.classifier.model import (
    ClassifierConfig,
    ClassifierModelConfig,
    LatentClassifier,
    classifier_homes,
    find_classifier,
)

__all__ = ["ClassifierConfig", "ClassifierModelConfig", "LatentClassifier", "classifier_homes", "find_classifier"]
