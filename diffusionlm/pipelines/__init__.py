"""From a trained model to samples: one pipeline for each model family."""
