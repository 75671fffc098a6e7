"""A stage is options and `run(config, runtime, run)`; stages never import each other."""
