"""The networks of published models as configs, to be measured with random weights and without a download.

The values are from the models' own config files; `app.catalogue` has their numbers of weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

STAGES = 4
AUTOENCODER = {
    "down_block_types": ("DownEncoderBlock2D",) * STAGES,
    "up_block_types": ("UpDecoderBlock2D",) * STAGES,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
}
VAE_4 = AUTOENCODER | {"latent_channels": 4}
VAE_16 = AUTOENCODER | {
    "latent_channels": 16,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "shift_factor": 0.1159,
    "scaling_factor": 0.3611,
}
STABLE_DIFFUSION = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}


@dataclass(frozen=True)
class Shape:
    """One model's networks.

    Attributes:
        pipeline: diffusers' class.
        denoiser: diffusers' class of the network, and `config` its settings.
        autoencoder: settings of its AutoencoderKL.
        scheduler: diffusers' class for the stock pipeline, and `schedule` its settings.
        tokens, width: of the prompt's embeddings.
        pooled: width of the pooled embedding that the network takes, or 0.
        preview_decoder: settings of its AutoencoderTiny, or None.
    """

    pipeline: str
    denoiser: str
    config: Mapping[str, Any]
    autoencoder: Mapping[str, Any]
    scheduler: str
    schedule: Mapping[str, Any]
    tokens: int
    width: int
    pooled: int = 0
    preview_decoder: Mapping[str, Any] | None = field(default_factory=dict)

    @property
    def is_flux(self) -> bool:
        """Whether latents are packed into tokens and guidance is embedded."""
        return self.denoiser == "FluxTransformer2DModel"


SHAPES = {
    "sd15": Shape(
        pipeline="StableDiffusionPipeline",
        denoiser="UNet2DConditionModel",
        config={"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
        autoencoder=VAE_4,
        scheduler="DPMSolverMultistepScheduler",
        schedule=STABLE_DIFFUSION,
        tokens=77,
        width=768,
    ),
    "sdxl": Shape(
        pipeline="StableDiffusionXLPipeline",
        denoiser="UNet2DConditionModel",
        config={
            "sample_size": 128,
            "cross_attention_dim": 2048,
            "attention_head_dim": (5, 10, 20),
            "use_linear_projection": True,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "block_out_channels": (320, 640, 1280),
            "transformer_layers_per_block": (1, 2, 10),
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        autoencoder=VAE_4 | {"scaling_factor": 0.13025},
        scheduler="DPMSolverMultistepScheduler",
        schedule=STABLE_DIFFUSION,
        tokens=77,
        width=2048,
        pooled=1280,
    ),
    "flux": Shape(
        pipeline="FluxPipeline",
        denoiser="FluxTransformer2DModel",
        config={"guidance_embeds": True},
        autoencoder=VAE_16,
        scheduler="FlowMatchEulerDiscreteScheduler",
        schedule={"shift": 3.0},
        tokens=512,
        width=4096,
        pooled=768,
        preview_decoder={"latent_channels": 16},
    ),
}
