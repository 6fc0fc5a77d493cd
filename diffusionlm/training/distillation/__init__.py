"""Distillation: objectives that train a student for few evaluations from a frozen teacher; see ``objective``."""
