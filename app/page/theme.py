"""The look of Gradio's own controls; app/page/static/page.css has the rest.

Colours are those of a landscape at dusk: warm paper, ink, and the coral of a low sun. Fonts come from
Gradio's own package, so that the page loads nothing from elsewhere.
"""

import gradio as gr
from gradio.themes.utils.colors import Color
from gradio.themes.utils.fonts import LocalFont
from gradio.themes.utils.sizes import radius_lg, spacing_md, text_md


def _color(name: str, shades: str) -> Color:
    """Make a color of its shades from 50 to 950."""
    return Color(*[*shades.split(), name])


CORAL = _color(
    "coral", "#fff4f0 #ffe5dc #ffcab9 #fba68d #f2805f #e2603d #c64a29 #a23a1f #7d2f1b #5f2617 #361109"
)
INK = _color("ink", "#faf8f5 #f1ede7 #e2dcd3 #c9c2b8 #9d978f #756f6b #57535a #34343f #22232d #191a23 #12131a")


def make_theme() -> gr.themes.Base:
    """Return the page's theme, for light and dark."""
    theme = gr.themes.Base(
        primary_hue=CORAL,
        secondary_hue=CORAL,
        neutral_hue=INK,
        text_size=text_md,
        spacing_size=spacing_md,
        radius_size=radius_lg,
        # Regular and bold are whole; the other weights in Gradio's package lack letters. Quicksand is listed
        # so that it is served, too: page.css sets headings in it.
        font=[
            LocalFont("Source Sans Pro", weights=(400, 700)),
            LocalFont("Quicksand", weights=(700,)),
            "system-ui",
            "sans-serif",
        ],
        font_mono=[LocalFont("IBM Plex Mono", weights=(400, 700)), "ui-monospace", "monospace"],
    )
    return theme.set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        body_text_color="*neutral_900",
        body_text_color_dark="*neutral_100",
        body_text_color_subdued="*neutral_500",
        body_text_color_subdued_dark="*neutral_400",
        block_background_fill="transparent",
        block_background_fill_dark="transparent",
        block_border_width="0px",
        block_shadow="none",
        block_padding="0px",
        block_label_background_fill="transparent",
        block_label_background_fill_dark="transparent",
        block_title_text_color="*neutral_600",
        block_title_text_color_dark="*neutral_300",
        block_info_text_color="*neutral_500",
        border_color_primary="*neutral_200",
        border_color_primary_dark="*neutral_700",
        input_background_fill="white",
        input_background_fill_dark="*neutral_900",
        input_border_width="1px",
        input_border_color="*neutral_200",
        input_border_color_dark="*neutral_700",
        input_border_color_focus="*primary_500",
        input_border_color_focus_dark="*primary_400",
        input_shadow_focus="0 0 0 3px color-mix(in srgb, *primary_500 22%, transparent)",
        slider_color="*primary_500",
        slider_color_dark="*primary_400",
        # White on the 600 keeps a contrast of 4.5 to 1.
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_hover_dark="*primary_700",
        button_primary_text_color="white",
        button_primary_border_color="transparent",
        button_secondary_background_fill="transparent",
        button_secondary_background_fill_dark="transparent",
        button_secondary_background_fill_hover="*neutral_100",
        button_secondary_background_fill_hover_dark="*neutral_800",
        button_secondary_border_color="*neutral_300",
        button_secondary_border_color_dark="*neutral_700",
        button_secondary_text_color="*neutral_700",
        button_secondary_text_color_dark="*neutral_200",
        button_border_width="1px",
    )
