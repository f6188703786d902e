"""The whole pipeline with a tiny model, through the real commands: `make smoke`."""
