"""Pictures: make them with diffusers pipelines, set them side by side, score them, search heads."""
