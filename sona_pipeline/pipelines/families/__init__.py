"""Pipelines, a file for each family of models; to add one, write a file like these and a line here."""

FAMILIES = {
    "stable_diffusion": "SONAPipeline",
    "stable_diffusion_xl": "SONAXLPipeline",
    "z_image": "SONAZImagePipeline",
    "flux": "SONAFluxPipeline",
    "flux_2": "SONAFlux2Pipeline",
    "qwen_image": "SONAQwenImagePipeline",
}
"""Names of the files, and of the pipeline in each."""
