"""Pages in a headless Chromium."""

import shutil
import subprocess
import tempfile

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = ("gpu", "background-networking", "component-update", "sync")


def open_page(address: str, *options: str) -> str:
    """Open a page and wait for its scripts; returns what Chromium prints, as with `--dump-dom`."""
    if CHROMIUM is None:
        raise FileNotFoundError("there is no Chromium: apt-get install chromium")
    with tempfile.TemporaryDirectory() as profile:
        done = subprocess.run(
            [
                CHROMIUM, "--headless", "--no-sandbox", "--no-first-run", "--hide-scrollbars",
                *(f"--disable-{feature}" for feature in QUIET), f"--user-data-dir={profile}",
                "--virtual-time-budget=60000", *options, address,
            ],
            capture_output=True, text=True, timeout=180, check=True,
        )  # fmt: skip
    return done.stdout
