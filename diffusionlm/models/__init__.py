"""Model families: configs, networks, loading and saving."""
