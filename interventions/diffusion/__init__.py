"""Methods for diffusion pipelines."""
