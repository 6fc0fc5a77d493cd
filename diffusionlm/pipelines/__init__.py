"""From a trained model to text: one pipeline for each model family."""
