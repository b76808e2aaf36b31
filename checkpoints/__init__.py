"""The embedded model's weights, and those of its network classes that diffusers does not have.

`import checkpoints` is all that a stock pipeline needs: `DiffusionPipeline.from_pretrained` finds
`LandscapesAutoencoder` here by the name in `model_index.json`, and `ModelMixin` to know how to load it.
It also registers the scene readers with `solver.readers`.
"""

from diffusers import ModelMixin

from checkpoints.autoencoder import LandscapesAutoencoder
from checkpoints.readers import READERS

__all__ = ["READERS", "LandscapesAutoencoder", "ModelMixin"]
