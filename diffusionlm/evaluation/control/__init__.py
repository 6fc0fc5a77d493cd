"""The benchmark of controlled generation."""
