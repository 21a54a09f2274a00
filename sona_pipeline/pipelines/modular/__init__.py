"""SONA as blocks and a guider of modular diffusers, which work through the pipeline of any family."""
