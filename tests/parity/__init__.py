"""Whole models against their peers: transformers' own losses and TRL's trainers, in float32."""
