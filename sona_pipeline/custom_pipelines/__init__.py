"""Pipelines as diffusers loads them by `custom_pipeline=`: one file each, made from `pipelines`."""
