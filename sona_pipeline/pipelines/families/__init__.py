"""Pipelines, a file for each family of models; to add one, write a file like these and a line here."""

FAMILIES = {
    "flux": "SONAFluxPipeline",
    "flux_2": "SONAFlux2Pipeline",
    "stable_diffusion": "SONAPipeline",
}
"""Names of the files, and of the pipeline in each."""
