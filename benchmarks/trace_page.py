"""The picture of a trace's page that the README shows, from the system's Chromium, without a window.

    python benchmarks/trace_page.py       # writes figures/trace.png

On Debian, `apt-get install chromium chromium-driver` brings the browser and its driver. Nothing is fetched.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TARGET = Path(__file__).parent.parent / "figures" / "trace.png"

TEXT = """The lighthouse keeper who had mended the radio twice last winter wrote to the harbour office again. The \
storm, he said, had taken the roof of the boat shed, two of the hens and, what annoyed him most, the newspaper.

Nobody answered for a week. Then a helicopter came and lowered three sheets of iron, a crate of chickens, and every \
newspaper since Tuesday, tied up with a ribbon."""

CHOSEN = "helicopter"


def lacking() -> str | None:
    """What this machine lacks to open a page; None where nothing is."""
    missing = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return f"there is no {' and no '.join(missing)} here (Debian: chromium, chromium-driver)" if missing else None


@contextmanager
def browser(downloads: Path) -> Iterator[Any]:
    """Chromium without a window, as a `selenium` driver; its console is in `get_log("browser")`.

    Args:
        downloads: the folder that pages save into.
    """
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    # As root there is no sandbox; containers have little shared memory; the same colours on every machine.
    for argument in ("no-sandbox", "disable-dev-shm-usage", "force-color-profile=srgb", "hide-scrollbars"):
        options.add_argument(f"--{argument}")
    options.add_argument("--headless=new")
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, Service(shutil.which("chromedriver")))
    try:
        yield driver
    finally:
        driver.quit()


def show(driver: Any, page: Path, size: Sequence[int], scheme: str = "light") -> None:
    """Open a page in a window of a size, in pixels, under a colour scheme."""
    width, height = size
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    driver.get(page.as_uri())


def main() -> None:
    """Make the picture."""
    from selenium.webdriver.common.by import By

    import clada
    from cladastats import word_table

    if reason := lacking():
        raise SystemExit(f"trace_page.py: {reason}")
    with tempfile.TemporaryDirectory() as name:
        page = Path(name) / "trace.html"
        clada.Trace(word_table(TEXT)).save(page)
        with browser(Path(name)) as driver:
            show(driver, page, (1200, 596))
            tokens = driver.find_elements(By.CSS_SELECTOR, ".token")
            next(token for token in tokens if token.text == CHOSEN).click()
            TARGET.write_bytes(driver.get_screenshot_as_png())


if __name__ == "__main__":
    main()
