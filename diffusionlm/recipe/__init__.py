"""What this library adds to the paper: schedules, objectives, networks, initialisation, refinement."""
