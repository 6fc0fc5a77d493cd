"""Metrics, likelihoods and benchmarks of generated text."""
