"""Pipelines, a file for each family of models; to add one, write a file like these and a line here."""

FAMILIES = {
    "qwen_image": "SONAQwenImagePipeline",
    "stable_diffusion": "SONAPipeline",
    "z_image": "SONAZImagePipeline",
}
"""Names of the files, and of the pipeline in each."""
