"""Exact constraints: automata, inference with them, spelling."""
