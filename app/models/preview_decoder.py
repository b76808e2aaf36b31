"""Preview decoders: small autoencoders that decode previews faster than the model's own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F

from app.catalogue import Found, ModelError
from app.catalogue.decoders import decoder_folder
from app.catalogue.files import read_json
from app.models.loading import load_component, precision
from app.models.model import ImageModel, PreviewDecoder
from solver.diffusion import LatentDiffusion, PipelineAsItIs

AUTO, OFF = "auto", "off"
# diffusers' class for all of them: TAESD, TAESDXL, TAESD3 and TAEF1.
CLASS = "AutoencoderTiny"
# Test picture: SQUARES x SQUARES coloured squares of LATENTS latents each. Decoders of the same latent space
# agree on its colours, others hardly ever do.
SQUARES, LATENTS, LEAST_AGREEMENT = 4, 2, 0.9


def with_preview_decoder(model: ImageModel, choice: str, found: Found) -> ImageModel:
    """Return the model with its preview decoder, if there is one.

    Args:
        choice: "auto" for the model's own, "off" for none, or a decoder's folder.

    Raises:
        ModelError: the chosen decoder cannot be used. With "auto" it is left out with a warning instead.
    """
    if choice == OFF:
        return model
    folder = decoder_folder(found) if choice == AUTO else Path(choice).expanduser()
    if folder is None:
        return model
    published = choice == AUTO and found.entry and not folder.is_relative_to(found.path)
    name = found.entry.decoder if published and found.entry else folder.resolve().name
    try:
        decoder = load_preview_decoder(folder, name, model.diffusion)
    except ModelError as error:
        if choice != AUTO:
            raise
        warning = f"Previews are decoded like finals, because the preview decoder can't be used: {error}"
        return replace(model, facts=replace(model.facts, warnings=(*model.facts.warnings, warning)))
    facts = replace(model.facts, preview_decoder=decoder.name)
    # A pipeline that is run as it is encodes no picture to compare them by.
    alike = 1.0 if decoder.pipeline else agreement(decoder, model.diffusion)
    if alike < LEAST_AGREEMENT:
        warning = (
            f"The preview decoder in {folder} seems to be made for another model: its colours correlate by "
            f"{alike:.2f} with those of the model's own decoder; at least {LEAST_AGREEMENT} is expected. "
            "Previews may not look like finals; --preview-decoder off decodes them like finals."
        )
        facts = replace(facts, warnings=(*facts.warnings, warning))
    return replace(model, preview_decoder=decoder, facts=facts)


@torch.inference_mode()
def agreement(decoder: PreviewDecoder, diffusion: LatentDiffusion) -> float:
    """Correlation of the colours that the decoder and the model's own give to one picture.

    It is low for a decoder of another latent space, even if all shapes fit.
    """
    squares = torch.rand(1, 3, SQUARES, SQUARES, generator=torch.Generator().manual_seed(0))
    edge = LATENTS * diffusion.scale
    picture = squares.repeat_interleave(edge, 2).repeat_interleave(edge, 3)
    latents = diffusion.encode_pictures(picture)
    colours = [
        F.adaptive_avg_pool2d(each.decode(latents).float(), SQUARES).flatten()
        for each in (decoder, diffusion)
    ]
    return float(torch.corrcoef(torch.stack(colours))[0, 1])


def load_preview_decoder(folder: Path, name: str, diffusion: LatentDiffusion) -> PreviewDecoder:
    """Load a decoder onto the model's device; raise ModelError if it does not fit the model."""
    instead = "Choose another --preview-decoder, or start with --preview-decoder off."
    try:
        config = read_json(folder / "config.json")
        kind, channels = config["_class_name"], config.get("latent_channels", 4)
    except FileNotFoundError:
        raise ModelError(f"{folder} is not a preview decoder: it has no config.json. {instead}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{folder / 'config.json'} can't be read. {instead}") from error
    if kind != CLASS:
        raise ModelError(f"{folder} holds an {kind}, but a preview decoder is an {CLASS}. {instead}")
    pipeline = diffusion if isinstance(diffusion, PipelineAsItIs) else None
    if pipeline and not hasattr(pipeline.vae.config, "scaling_factor"):
        raise ModelError(f"{folder} can't draw latents of a {type(pipeline.vae).__name__}. {instead}")
    due = pipeline.vae.config.latent_channels if pipeline else diffusion.latent_shape[0]
    if channels != due:
        raise ModelError(
            f"The decoder in {folder} reads {channels} latent channels, but the model has {due}. {instead}"
        )
    dtype = precision(diffusion.device, "vae")
    network = load_component(
        folder.parent, folder.name, ("diffusers", CLASS), dtype, diffusion.device, advice=instead
    )
    decoder = PreviewDecoder(name, network, pipeline)
    with torch.inference_mode():
        latents = torch.zeros(1, diffusion.latent_shape[0], 8, 8, device=diffusion.device)
        edge = decoder.decode(latents).shape[-1]
    if edge != 8 * diffusion.scale:
        raise ModelError(
            f"The decoder in {folder} makes {edge / 8:g} pixels per latent, the model {diffusion.scale}. "
            f"{instead}"
        )
    return decoder
