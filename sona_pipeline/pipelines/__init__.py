"""Pipelines for diffusers: what all families of models share, and `families`. They import nothing else of ours."""
