"""Diffusion policies: schedules, samplers, guidance, networks, training, checkpoints, export."""
