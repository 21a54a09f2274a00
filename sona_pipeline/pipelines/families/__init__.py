"""Pipelines, a file for each family of models; to add one, write a file like these and a line here."""

FAMILIES = {
    "flux": "SONAFluxPipeline",
    "stable_diffusion": "SONAPipeline",
    "stable_diffusion_xl": "SONAXLPipeline",
}
"""Names of the files, and of the pipeline in each."""
