"""The method of the paper: schedule, process, sampler, model, objective, guidance."""
