"""Pipelines, a file for each family of models; to add one, write a file like these and a line here."""

FAMILIES = {
    "stable_diffusion": "SONAPipeline",
    "stable_diffusion_xl": "SONAXLPipeline",
    "stable_diffusion_3": "SONASD3Pipeline",
}
"""Names of the files, and of the pipeline in each."""
