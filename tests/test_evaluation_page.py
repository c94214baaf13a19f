import base64
import io
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from agents.evaluate_options import EvaluateOptions
from agents.evaluation_page import write_page
from agents.evaluation_pictures import Comparison, Shown, compare, largest_within, nearest_setting, shown_curve
from agents.evaluation_report import collect, write_plot, write_table
from agents.reports import busiest_crop
from gan.rate_curves import Curve
from gan.rate_points import LANCZOS_RESTORER, FileSeries
from rlsr_env.codec import LRCodec
from rlsr_env.resample import upsample

CHROMIUM, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))
NAME = "a <b>bold</b> & odd name.png"


def curve(name: str, kind: str, scale: int, first: float, **more: Any) -> Curve:
    points = tuple(
        {"setting": setting, "bits_per_pixel": rate, "psnr": first + setting, "psnr_clic": first + setting - 1,
         "ms_ssim": 0.9 + setting / 1000, "ssim": 0.8, "gain_over_lanczos": 1.5}
        for setting, rate in ((3, 0.1), (5, 0.2), (7, 0.4))
    )  # fmt: skip
    return Curve(name, kind, "jpeg", scale, points, **more)


CURVES = [
    curve("jpeg", "whole", 1, 20.0),
    curve("lanczos-jpeg-x2", "lanczos", 2, 21.0),
    curve("ours-jpeg-x2", "ours", 2, 22.5, container="rlsr", purpose="psnr"),
]


def flat(value: int, height: int = 120, width: int = 240) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), value, np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    about = {
        "command": "rlsr evaluate 'a <folder>'", "data": {"name": "a <folder>", "version": "1"},
        "pictures": [{"name": NAME, "height": 120, "width": 240}], "skipped": [{"name": "bad<.png", "reason": "it is"}],
        "versions": {"rlsr": "0"},
    }  # fmt: skip
    results = collect(CURVES, (0.05, 0.1, 0.15), about)
    before = (Shown("Lanczos, the same file", "10 bytes", flat(60)), Shown("JPEG", "9 bytes", flat(120)))
    comparisons = [
        Comparison(NAME, 120, 240, Shown("JPEG x2 + ours", "10 bytes", flat(200)), before),
        Comparison("second.png", 120, 240, Shown("JPEG x2 + ours", "10 bytes", flat(200)), before[:1]),
    ]
    write_plot(folder / "rd.png", CURVES, results)
    write_table(folder / "table.md", results)
    write_page(folder / "report.html", results, folder / "rd.png", comparisons)
    return folder / "report.html"


class Collector(HTMLParser):
    """Everything that a page could load, and its open tags."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")]


def test_page_is_self_contained_and_takes_names_literally(page: Path) -> None:
    text = page.read_text()
    collector = Collector()
    collector.feed(text)
    assert collector.sources and all(source.startswith("data:image/") for source in collector.sources)
    assert not re.search(r"url\(|@import|https?://", text)
    assert "default-src 'none'" in text
    assert collector.tags.count("figure") == 2 and collector.tags.count("img") == 1 + 3 + 2
    assert "a &lt;b&gt;bold&lt;/b&gt; &amp; odd name.png" in text and "<b>bold" not in text
    assert "bad&lt;.png" in text and "a &lt;folder&gt;" in text and "<folder>" not in text
    assert "$" not in text


def test_pictures_of_the_page_are_the_ones_given(page: Path) -> None:
    found = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page.read_text())
    assert [base64.b64decode(one) for one in found] == [flat(200), flat(60), flat(120), flat(200), flat(60)]


def test_tables_of_the_page_have_the_values(page: Path) -> None:
    text = page.read_text()
    assert "<td>JPEG</td><td>\N{EN DASH}</td><td>23.00</td><td>24.17</td>" in text
    assert '<td class="best">25.50</td>' in text
    table = (page.parent / "table.md").read_text()
    assert "| JPEG | \N{EN DASH} | 23.00 | 24.17 |" in table and "| JPEG x2 + ours |" in table


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    """Headless Chromium."""
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("no chromium and chromedriver here")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
        "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
        "--window-size=1000,1400", f"--user-data-dir={tmp_path / 'profile'}",
    ):  # fmt: skip
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=DRIVER))
    yield driver
    driver.quit()


def test_slider_works_by_mouse_and_keyboard(page: Path, browser: Any) -> None:
    from selenium.webdriver import ActionChains, Keys
    from selenium.webdriver.common.by import By

    def brightness() -> list[int]:
        """Mean grey level of the left and right part of the first picture, a quarter from each side."""
        png = browser.find_element(By.CSS_SELECTOR, "#picture-0 .stage").screenshot_as_png
        pixels = np.array(Image.open(io.BytesIO(png)).convert("L"), float)
        width = pixels.shape[1]
        columns = (slice(width // 5, width // 5 + 8), slice(width - width // 5 - 8, width - width // 5))
        return [round(float(np.median(pixels[10:30, column]))) for column in columns]

    browser.get(page.as_uri())
    stage = browser.find_element(By.CSS_SELECTOR, "#picture-0 .stage")
    slider = stage.find_element(By.TAG_NAME, "input")
    assert brightness() == [60, 200]  # in the middle: Lanczos at the left, ours at the right
    width = stage.size["width"]
    ActionChains(browser).move_to_element_with_offset(stage, round(-0.4 * width), 0).click().perform()
    assert abs(float(slider.get_property("value")) - 10) < 2
    assert brightness() == [200, 200]
    ActionChains(browser).click_and_hold().move_by_offset(round(0.8 * width), 0).release().perform()
    assert abs(float(slider.get_property("value")) - 90) < 2
    assert brightness() == [60, 60]
    value = float(slider.get_property("value"))
    slider.send_keys(Keys.ARROW_LEFT)
    assert float(slider.get_property("value")) == value - 0.5
    slider.send_keys(Keys.HOME)
    assert brightness() == [200, 200]
    slider.send_keys(Keys.END)
    assert brightness() == [60, 60]
    browser.find_elements(By.CSS_SELECTOR, "#picture-0 .choices label")[1].click()
    assert brightness() == [120, 120]
    assert [text.is_displayed() for text in browser.find_elements(By.CSS_SELECTOR, "#picture-0 [data-side]")] == [
        False, True,
    ]  # fmt: skip
    other = browser.find_element(By.CSS_SELECTOR, "#picture-1 .stage input")
    assert other.get_property("value") == "50"  # the second picture stayed as it was
    sizes = browser.execute_script("return [...document.images].map(image => image.naturalWidth)")
    assert all(sizes)
    assert browser.get_log("browser") == []  # nothing was refused, nothing failed


def test_page_fits_a_narrow_window(page: Path, browser: Any) -> None:
    browser.set_window_size(500, 900)
    browser.get(page.as_uri())
    widths = browser.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
    assert widths[0] <= widths[1]


def test_comparison_shows_what_fits_into_the_same_bytes(hr_pictures: list[np.ndarray]) -> None:
    hr_image = hr_pictures[0]
    series = FileSeries("jpeg", 2, (LANCZOS_RESTORER,))
    options = EvaluateOptions("data", codecs=("jpeg", "webp", "lanczos"), show_rate=0.19, crop=64)
    comparison = compare("one", hr_image, series, CURVES[1], options, device=torch.device("cpu"))
    assert (comparison.height, comparison.width) == (64, 64)
    assert [shown.label for shown in comparison.before] == ["JPEG", "WebP", "Original"]
    codec = LRCodec(2, "jpeg", 5)  # the setting whose rate is the nearest
    file = codec.encode(hr_image)
    assert comparison.after.label == "JPEG x2 + Lanczos"
    assert comparison.after.caption.startswith(f"{len(file):,} bytes · ")
    assert "times as many: it goes no lower" in comparison.before[0].caption
    shown = np.array(Image.open(io.BytesIO(comparison.after.jpeg)), float)
    lr_image = np.asarray(codec.decode(file)).transpose(2, 0, 1)[None] / np.float32(255)
    top, left, _ = busiest_crop(hr_image, 64)
    restored = upsample(torch.from_numpy(lr_image), 2)[0, :, top : top + 64, left : left + 64].clamp(0, 1) * 255
    assert np.abs(shown - restored.permute(1, 2, 0).numpy()).mean() < 6


@pytest.mark.parametrize("codec", ["jpeg", "webp"])
def test_largest_file_within_a_budget(codec: str, hr_pictures: list[np.ndarray]) -> None:
    series = FileSeries(codec)
    sizes = {quality: len(series.encode(hr_pictures[0], quality)) for quality in (1, 20, 21, 60)}
    assert len(largest_within(series, hr_pictures[0], sizes[20])) == sizes[20]
    assert sizes[20] <= len(largest_within(series, hr_pictures[0], sizes[21] - 1)) < sizes[21]
    lowest = series.encode(hr_pictures[0], LRCodec(1, codec, 50).quality - 50 + (codec == "jpeg"))
    assert largest_within(series, hr_pictures[0], 10) == lowest


def test_shown_curve_is_ours_where_there_is_one_and_covers_the_rate() -> None:
    plain = curve("ours-jpeg-x2-plain", "ours", 2, 30.0)
    ensemble = curve("ours-jpeg-x2-ensemble", "ours", 2, 30.0, container="rlsr", ensemble=True)
    better = curve("ours-jpeg-x3", "ours", 3, 25.0, container="rlsr")
    assert shown_curve([*CURVES, plain, ensemble], 0.2) is CURVES[2]
    assert shown_curve([*CURVES, better], 0.2) is better
    assert shown_curve(CURVES[:2], 0.2) is CURVES[1]
    assert shown_curve(CURVES[:1], 0.2) is None
    assert nearest_setting(CURVES[1], 0.13) == 3 and nearest_setting(CURVES[1], 0.15) == 5
