"""Corpora, tokenizers, batches, labels and annotators."""
