"""Make the screenshots in README and docs, the page's icon, and its card for links, with the app itself.

    python -m tools.screenshots               # writes docs/*.png and the icon and card in app/page/static

Starts the app with the embedded model. Prompts and seeds are fixed, so the pictures depend only on the model.
"""

import argparse
import base64
import io
from pathlib import Path
from typing import Any

import httpx
from PIL import Image, ImageDraw
from tqdm import tqdm

from app.models import ROOT
from tools.latency import BROWSER_OPTIONS, find_browser, running_app

STATIC = ROOT / "app" / "page" / "static"
DOCS = ROOT / "docs"
PROMPT = "snowy mountains at sunset with a lake and a cabin"
FIRST_SEED = 30
EARLIER = "a lighthouse by the sea at night"
# The icon has the middle of the first of these, and the card has all.
SHARED_PROMPT = "snowy mountains at sunset under a clear sky"
SHARED_SEEDS = (2, 3, 4, 6)
# Colours of a screenshot: enough for sharp letters, and far fewer bytes.
COLOURS = 256
WIDE = {"viewport": {"width": 1280, "height": 900}}
PHONE = {
    "viewport": {"width": 390, "height": 844},
    "device_scale_factor": 2,
    "is_mobile": True,
    "has_touch": True,
}

CARD = """<!doctype html><style>
  @font-face { font-family: Quicksand; src: url("static/fonts/Quicksand/Quicksand-Bold.woff2"); }
  @font-face { font-family: Source; src: url("static/fonts/SourceSansPro/SourceSansPro-Regular.woff2"); }
  body { margin: 0; width: 1200px; height: 630px; display: flex; background: #faf8f5; color: #191a23; }
  ol { margin: 0; padding: 22px; display: grid; grid-template-columns: 286px 286px; gap: 14px; }
  li { position: relative; height: 286px; list-style: none; }
  li img { width: 286px; height: 286px; border-radius: 20px; display: block; }
  li:nth-child(3) img { outline: 7px solid #e2603d; }
  b { position: absolute; left: 12px; top: 12px; padding: 7px 13px; border-radius: 10px; color: #fff; }
  b { background: rgb(18 19 26 / .66); font: 24px/1 Quicksand; }
  main { flex: 1; display: grid; align-content: center; gap: 24px; padding: 0 46px 0 34px; }
  h1 { font: 66px/1.06 Quicksand; margin: 0; letter-spacing: -0.02em; }
  p { font: 31px/1.35 Source; margin: 0; color: #57535a; }
</style>
<ol>PICTURES</ol>
<main><h1>Diffusion Preview</h1>
<p>See four quick previews, pick one, and only that one is finished.</p></main>"""


def take(page: Any, path: Path, **options: Any) -> None:
    """Write a screenshot as a PNG of COLOURS colours."""
    picture = Image.open(io.BytesIO(page.screenshot(**options)))
    picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    tqdm.write(f"{path.relative_to(ROOT)}: {path.stat().st_size // 1024} KiB")


def preview(page: Any, prompt: str) -> None:
    page.fill("#prompt input", prompt)
    page.press("#prompt input", "Enter")
    page.locator(f".tile img[alt*='“{prompt}”']").nth(3).wait_for()
    page.locator(".grid[aria-busy=false]").wait_for()


def show_session(page: Any, url: str) -> None:
    """Show an earlier grid, and one with a kept preview and a refined one."""
    page.goto(f"{url}?prompt={EARLIER}&seed=11")
    page.wait_for_function("text => document.querySelector('#prompt input')?.value === text", arg=EARLIER)
    preview(page, EARLIER)
    page.goto(f"{url}?prompt={PROMPT}&seed={FIRST_SEED}")
    page.wait_for_function("text => document.querySelector('#prompt input')?.value === text", arg=PROMPT)
    preview(page, PROMPT)
    page.locator(".keep").nth(2).click()
    page.locator(".tile .refine").first.click()
    page.locator(".stage[data-state=done]").wait_for()
    page.locator("#studio .unseen").first.focus()
    page.mouse.move(0, 0)
    page.wait_for_timeout(600)  # for the last transitions


def make_icon(url: str) -> None:
    """Write the icon: the middle of a picture in a rounded square."""
    picture = made(url, SHARED_PROMPT, SHARED_SEEDS[0])
    edge = picture.height * 3 // 4
    left = (picture.width - edge) // 2
    picture = picture.crop((left, 0, left + edge, edge)).resize((192, 192), Image.Resampling.LANCZOS)
    mask = Image.new("L", (768, 768))
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, 767, 767), 170, fill=255)
    picture.putalpha(mask.resize((192, 192), Image.Resampling.LANCZOS))
    picture.quantize(COLOURS).save(STATIC / "favicon.png", optimize=True)


def make_card(url: str, browser: Any) -> None:
    """Write the card that sites show for links: four pictures beside the name, 1200 × 630 pixels."""
    pictures = ""
    for number, seed in enumerate(SHARED_SEEDS, 1):
        buffer = io.BytesIO()
        made(url, SHARED_PROMPT, seed).save(buffer, "PNG")
        data = base64.b64encode(buffer.getvalue()).decode()
        pictures += f'<li><img src="data:image/png;base64,{data}"><b>{number}</b></li>'
    page = browser.new_page(viewport={"width": 1200, "height": 630})
    page.goto(url)  # for its fonts
    page.set_content(CARD.replace("PICTURES", pictures))
    page.evaluate("document.fonts.ready")
    take(page, STATIC / "card.png")
    page.close()


def made(url: str, prompt: str, seed: int) -> Image.Image:
    """Return the app's refined picture of a prompt and a seed."""
    from gradio_client import Client

    client = Client(url, verbose=False, download_files=False)
    file, _ = client.predict(prompt=prompt, seed=seed, api_name="/refine")
    return Image.open(io.BytesIO(httpx.get(file["url"]).content)).convert("RGB")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.screenshots", description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="landscapes", help="as for app.py (%(default)s)")
    parser.add_argument("--device", default="auto", help="as for app.py (%(default)s)")
    arguments = parser.parse_args()
    found = find_browser()
    if found is None:
        raise SystemExit("This needs a browser: install chromium.")
    from playwright.sync_api import sync_playwright

    shots: list[tuple[str, dict[str, Any], bool]] = [
        ("page.png", WIDE, True),
        ("page-dark.png", WIDE | {"color_scheme": "dark"}, True),
        ("page-phone.png", PHONE, False),
    ]
    with running_app(arguments.model, arguments.device) as (_, url, _), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=list(BROWSER_OPTIONS))
        make_icon(url)
        make_card(url, browser)
        for name, options, whole in tqdm(shots, unit="shot", disable=None):
            page = browser.new_context(**options).new_page()
            page.set_default_timeout(120_000)
            show_session(page, url)
            take(page, DOCS / name, full_page=whole)
        browser.close()


if __name__ == "__main__":
    main()
