"""Pipelines, a file for each family of models; to add one, write a file like these and a line here."""

FAMILIES = {
    "chroma": "SONAChromaPipeline",
    "flux": "SONAFluxPipeline",
    "flux_2": "SONAFlux2Pipeline",
    "qwen_image": "SONAQwenImagePipeline",
    "stable_diffusion": "SONAPipeline",
    "stable_diffusion_3": "SONASD3Pipeline",
    "stable_diffusion_xl": "SONAXLPipeline",
    "z_image": "SONAZImagePipeline",
}
"""Names of the files, and of the pipeline in each."""
