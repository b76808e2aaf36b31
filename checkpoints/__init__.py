"""Weights that ship with the repository, and the one network class of theirs that diffusers does not have.

`import checkpoints` is all that a stock pipeline needs: `DiffusionPipeline.from_pretrained` finds
`LandscapesAutoencoder` here by the name in `model_index.json`, and `ModelMixin` to know how to load it.
"""

from diffusers import ModelMixin

from checkpoints.autoencoder import LandscapesAutoencoder

__all__ = ["LandscapesAutoencoder", "ModelMixin"]
