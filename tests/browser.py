"""A real browser for pages: Debian's chromium, headless, by selenium; and axe-core, which looks for barriers.

Both are there after `make test` where they can be had; where not, tests are skipped, and say so.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

AXE = Path(os.environ.get("EDGEPRESS_AXE", Path(__file__).parents[1] / ".axe" / "package" / "axe.min.js"))


class Browser:
    """One window."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, page: Path, fragment: str = "") -> None:
        """Show a page in a fresh document, without what an earlier one said."""
        self.driver.get("about:blank")
        self.requests()
        self.driver.get_log("browser")
        self.driver.get(page.resolve().as_uri() + fragment)

    def requests(self) -> list[str]:
        """Addresses that were asked for since the last call, and that no policy stopped."""
        messages = [json.loads(each["message"])["message"] for each in self.driver.get_log("performance")]
        stopped = {
            message["params"]["requestId"]
            for message in messages
            if message["method"] == "Network.loadingFailed"
            and message["params"].get("blockedReason") == "csp"
        }
        return [
            message["params"]["request"]["url"]
            for message in messages
            if message["method"] == "Network.requestWillBeSent"
            and message["params"]["requestId"] not in stopped
        ]

    def complaints(self) -> list[str]:
        """What the console got."""
        return [each["message"] for each in self.driver.get_log("browser")]

    def run(self, script: str, *arguments: object) -> Any:
        """What a JavaScript function body returns."""
        return self.driver.execute_script(script, *arguments)

    def press(self, *keys: str) -> None:
        """Type at whatever has the focus."""
        self.driver.switch_to.active_element.send_keys(*keys)

    def media(self, **features: str) -> None:
        """`prefers_color_scheme="dark"`, or `media="print"`."""
        kind = features.pop("media", "")
        named = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": kind, "features": named})

    def size(self, width: int, height: int = 800) -> None:
        """Of the window's inside."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def barriers(self) -> list[str]:
        """What axe finds serious or worse: rule, and where."""
        if not AXE.is_file():
            pytest.skip("axe-core is not here (make test fetches it by npm)")
        self.run(AXE.read_text(encoding="utf-8"))
        found = self.driver.execute_async_script("axe.run().then(arguments[arguments.length - 1])")
        assert found["passes"], "axe looked at nothing"
        return [
            f"{each['id']}: {node['html']}"
            for each in found["violations"]
            if each["impact"] in ("serious", "critical")
            for node in each["nodes"]
        ]


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """A window, gone at the end; the test is skipped where there is none to be had.

    Args:
        folder: for the browser's own files.
    """
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in programs:
        pytest.skip("chromium with its chromedriver is not here")
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(word)
    options.add_argument(f"--user-data-dir={folder}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(programs[1], log_output=subprocess.DEVNULL)
    driver = webdriver.Chrome(options, service)
    try:
        yield Browser(driver)
    finally:
        driver.quit()
