"""JupyterLab as a person uses it: open a notebook, run all cells, move a widget, read what changed."""

import json
import os
import socket
import subprocess
import sys
import time
from urllib.request import urlopen

import nbformat
import pytest
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from thesis_lib.batch.plan import plan

pytestmark = pytest.mark.slow

TOKEN = "test"
IDLE = "/\\| Idle/.test(document.querySelector('#jp-main-statusbar')?.innerText || '')"
EXECUTED = "[...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].every(e => /\\[\\d+\\]/.test(e.textContent))"
OUTPUT = ".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.{}']"
FAULTS = f"{OUTPUT.format('error')}, {OUTPUT.format('stderr')}:has-text('Warning')"      # bars go to stderr, too


@pytest.fixture(scope="module")
def lab(browser, demo_data, tmp_path_factory):
    """Address of a JupyterLab on the notebooks 00, 02 and 07 with the parameters of the profile smoke."""
    home = tmp_path_factory.mktemp("lab")
    (home / "notebooks").mkdir()
    for task in plan("smoke", only=["00", "02", "07"]):
        content = parameterize_notebook(load_notebook_node(str(task.notebook)), task.parameters)
        nbformat.write(content, home / "notebooks" / task.notebook.name)
    settings = home / "settings" / "@jupyterlab" / "notebook-extension"
    settings.mkdir(parents=True)
    # Cells out of sight are otherwise not in the page at all.
    (settings / "tracker.jupyterlab-settings").write_text(json.dumps({"windowingMode": "none"}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {f"JUPYTER_{name}_DIR": str(home / name) for name in ("CONFIG", "DATA", "RUNTIME")} | {
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"), "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
        "IPYTHONDIR": str(home / "ipython"), "THESIS_DATA": str(demo_data.parent), "THESIS_OUTPUTS": str(home)}
    options = ["--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0",
               f"--IdentityProvider.token={TOKEN}", f"--ServerApp.root_dir={home / 'notebooks'}"]
    with open(home / "log", "w") as log:
        server = subprocess.Popen([sys.executable, "-m", "jupyterlab", *options], env=environment, stdout=log,
                                  stderr=log)
    address, patience = f"http://127.0.0.1:{port}", time.monotonic() + 90
    try:
        while True:
            try:
                urlopen(f"{address}/api", timeout=5).close()
                break
            except OSError:
                assert server.poll() is None and time.monotonic() < patience, (home / "log").read_text()
                time.sleep(0.3)
        yield address
    finally:
        server.terminate()
        server.wait(30)


def run_all(page, address, name):
    """Open a notebook, wait for its kernel, run every cell to the end."""
    page.goto(f"{address}/lab/tree/{name}.ipynb?token={TOKEN}&reset")
    page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=90_000)
    page.wait_for_function(IDLE, timeout=90_000)        # the indicator in the toolbar is idle before there is a kernel
    page.click('.lm-MenuBar-itemLabel:text-is("Run")')
    page.click('.lm-Menu-itemLabel:text-is("Run All Cells")')
    page.wait_for_function(EXECUTED, timeout=300_000)
    page.wait_for_function(IDLE, timeout=60_000)
    assert page.locator(FAULTS).count() == 0, page.locator(FAULTS).first.inner_text()


@pytest.fixture
def page(browser):
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    yield page
    page.close()


def test_the_start_page_runs(lab, page):
    run_all(page, lab, "00_start_here")
    assert "02 AUROC" in page.locator(".jp-Notebook").inner_text()


def test_a_slider_of_02_redraws_the_curves(lab, page):
    run_all(page, lab, "02_auroc")
    images = page.locator(".jupyter-widgets .jp-OutputArea-output img")
    before = images.first.get_attribute("src")
    handle = page.locator(".jupyter-widgets .noUi-handle").first
    handle.focus()
    handle.press("ArrowRight")
    page.wait_for_function("before => document.querySelector('.jupyter-widgets .jp-OutputArea-output img')?.src != "
                           "before", arg=before, timeout=20_000)
    assert page.locator(FAULTS).count() == 0


def test_the_threshold_of_07_changes_the_verdict(lab, page):
    run_all(page, lab, "07_patchcore_original")
    told = page.locator(".jupyter-widgets.widget-html:has-text('at threshold')")
    before = told.inner_text()
    handle = page.locator(".widget-slider:has-text('threshold') .noUi-handle")
    handle.focus()
    began = time.monotonic()
    handle.press("ArrowLeft")
    page.wait_for_function("before => ![...document.querySelectorAll('.widget-html')].some(e => e.innerText == before)",
                           arg=before, timeout=20_000)
    print(f"answered after {time.monotonic() - began:.2f} s")
    assert "false alarms" in told.inner_text() and page.locator(FAULTS).count() == 0
    assert page.locator(".widget-output img").count() == 2          # the picture, and the curve of all
