"""A small simulated world: films with questions whose answers, reasoning and evidence are known exactly."""
