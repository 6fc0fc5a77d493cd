"""The trainer, training runs, optimizers, callbacks and checkpoints."""
