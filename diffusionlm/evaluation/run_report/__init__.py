"""``report``: one HTML page about a training run."""
