"""The documentation site: what it refuses, and what a reader with a browser finds."""

import html
import json
import re
import shutil
from urllib.parse import unquote, urlparse

import nbformat
import pytest
import yaml
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from PIL import Image

from thesis_lib.batch.plan import plan
from thesis_lib.batch.run import run
from thesis_lib.commands.main import main
from thesis_lib.core import paths
from thesis_lib.report import pages, site, tables

MEASURE = """
from thesis_lib.core import results
subject = {"method": "patchcore", "category": "pad", "parameters": {"layers": [2], "backbone": "resnet18"}, "seed": 0}
results.find("auroc", subject) or results.save("auroc", subject, {"image_auroc": 0.5})
print("measured")"""
DRAW = """
import matplotlib.pyplot as plt
plt.figure(figsize=(9, 1))
plt.plot([0, 1])
plt.show()
plt.figure(figsize=(3, 2))
plt.plot([0, 1])
plt.show()"""
STAMP = """
class stamp:
    show = staticmethod(lambda: print("commit  0123456789ab"))
stamp.show()"""
LINE = "eighty_eight = " + "9" * 73         # characters
TABLE = """
import pandas
from IPython.display import Markdown, display
display(Markdown("[a link that is displayed](07_two.ipynb)\\n\\n| a | b |\\n|---|---|\\n| $x$ | told |"))
pandas.DataFrame([["a long word of a table"] * 20])"""
FORMULA = "$$ s = " + " + ".join(f"x_{{{number}}}" for number in range(60)) + " $$"
LINKS = re.compile(r'(?:href|src)="([^"]+)"')


def notebook(folder, name, title, *cells):
    head = new_code_cell("seeds: int = 5  # banks", metadata={"tags": ["parameters"]})
    made = [new_markdown_cell(
        f"# {title}\n\n**Thesis:** sec. 1. **Question:** what is <{name}>? A formula: $s = \\max_p d_p$, and "
        f"[the other](07_two.ipynb).\n\n## More\n\n{FORMULA}")]
    made += [head, *map(new_code_cell, [STAMP, LINE, *cells])]
    nbformat.write(new_notebook(cells=made), folder / f"{name}.ipynb")


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """(folder of two notebooks, folder of outputs where they were executed)."""
    folder, outputs = tmp_path_factory.mktemp("notebooks"), tmp_path_factory.mktemp("outputs")
    notebook(folder, "00_one", "00 One", MEASURE, TABLE)
    notebook(folder, "07_two", "07 Two", DRAW)
    (folder / "runs.yml").write_text(yaml.safe_dump({"demo": {"timeout_s": 100}}), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("THESIS_OUTPUTS", str(outputs))
        patch.setattr(paths, "notebooks", lambda: folder)
        outcomes = run(plan("demo"), report=lambda line: None)
        assert [outcome.state for outcome in outcomes] == ["done", "done"], outcomes
    return folder, outputs


@pytest.fixture
def at_home(executed, monkeypatch):
    folder, outputs = executed
    monkeypatch.setenv("THESIS_OUTPUTS", str(outputs))
    monkeypatch.setattr(paths, "notebooks", lambda: folder)
    return folder, outputs


@pytest.fixture(scope="module")
def built(executed):
    folder, outputs = executed
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("THESIS_OUTPUTS", str(outputs))
        patch.setattr(paths, "notebooks", lambda: folder)
        return site.build("demo").parent


def test_a_record_names_the_rows_behind_the_page(at_home):
    first, second = (json.loads(task.record.read_text()) for task in plan("demo"))
    (row,) = tables.all_rows().query("origin == 'own'")["id"]
    assert first["rows"] == [row] and second["rows"] == []
    assert not list(at_home[1].rglob("*.rows"))


def test_every_page_and_row_is_there(built):
    start = (built / "index.html").read_text(encoding="utf-8")
    assert "Chapter 3, PatchCore" in start and "Chapter 2" not in start, "only chapters that have a notebook"
    (row,) = (built / "rows").glob("*.json")
    table = (built / "rows" / "00_one.html").read_text(encoding="utf-8")
    assert f'href="{row.name}"' in table and "patchcore" in table and "0.5" in table
    assert "1 result rows" in (built / "00_one.html").read_text(encoding="utf-8")
    assert not (built / "rows" / "07_two.html").exists()
    for page in html_files(built):
        assert not broken(page), page.name
    assert not re.search(r'(src|href)="https?://(?!pypi|github|arxiv|doi)[^"]*\.(js|css)"', start)


def html_files(built):
    """Every page of the site; below _static lie templates of the theme."""
    return sorted(file for file in built.rglob("*.html") if "_static" not in file.parts)


def broken(page):
    """Links of a page to files, and to places in pages, that are not there."""
    text, wrong = page.read_text(encoding="utf-8"), []
    for link in LINKS.findall(text):
        address = urlparse(html.unescape(link))
        target = page.parent / unquote(address.path) if address.path else page
        if address.scheme or link == "#":
            continue
        if not target.is_file():
            wrong.append(link)
        elif address.fragment and target.suffix == ".html":
            there = text if target == page else target.read_text(encoding="utf-8")
            if f'id="{unquote(address.fragment)}"' not in there:
                wrong.append(link)
    return wrong


def test_the_opening_page_shows_each_page_by_a_figure_of_its_own(built):
    start = (built / "index.html").read_text(encoding="utf-8")
    for name, title in {"00_one": "00 One", "07_two": "07 Two"}.items():
        assert re.search(rf'<a class="page-card" href="{name}.html"><b>(<img [^>]*>)?{title}</b>'
                         rf"<span>what is &lt;{name}&gt;\?</span>", start)
    assert [file.name for file in (built / "thumbnails").iterdir()] == ["07_two.png"]       # the other has no figure
    with Image.open(built / "thumbnails" / "07_two.png") as shown:
        assert shown.width <= site.CARD[0] and 1.3 < shown.width / shown.height < 1.8       # not the strip before it


def test_a_page_links_its_neighbours_and_the_pages_on_the_thesis(built):
    one, two = (BeautifulSoup((built / f"{name}.html").read_text(encoding="utf-8"), "html.parser")
                for name in ("00_one", "07_two"))
    assert one.select_one("a.right-next")["href"] == "07_two.html"
    assert two.select_one("a.left-prev")["href"] == "00_one.html"
    for page in (one, two):
        related = next(text for text in page.find_all("p") if text.get_text().startswith("Related: "))
        assert {"figures.html", "errors.html", "glossary.html"} <= {link["href"].partition("#")[0]
                                                                      for link in related.find_all("a")}


def test_displayed_markdown_has_links_tables_and_formulas(built):
    page = BeautifulSoup((built / "00_one.html").read_text(encoding="utf-8"), "html.parser")
    assert page.find("a", string="a link that is displayed")["href"] == "07_two.html"
    assert page.find("td", string="told") and page.select_one("div.cell_output td span.math")


def test_related_pages_are_pages():
    numbers = {file.name[:2] for file in (paths.root() / "notebooks").glob("[0-9][0-9]_*.ipynb")}
    assert set(site.RELATED) == numbers == {number for chapter in site.CHAPTERS.values() for number in chapter}
    for number, others in site.RELATED.items():
        assert set(others) <= numbers - {number} and list(others) == sorted(set(others))


def test_a_page_begins_with_its_idea(built, browser):
    page = browser.new_page()
    page.goto((built / "00_one.html").as_uri())
    closed = page.locator("div.cell details:not([open])")
    assert [text.strip() for text in closed.locator("summary").all_inner_texts()] == [
        "Parameters", "Imports, and the stamp of the machine"]
    stamp = page.locator("div.cell_output", has_text="0123456789ab")
    assert not stamp.is_visible() and page.locator("pre", has_text="eighty_eight").is_visible()
    closed.locator("summary").last.click()
    assert stamp.is_visible()
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_page_scrolls_sideways(built, browser, scheme):
    """On a phone, and 88 characters of code are seen at once on a desktop."""
    check_widths(built, browser, scheme)
    with browser.new_context(viewport={"width": 390, "height": 844}, color_scheme=scheme) as phone:
        page = phone.new_page()
        page.goto((built / "00_one.html").as_uri())
        code = page.locator("pre", has_text="eighty_eight")
        assert code.evaluate("box => box.scrollWidth > box.clientWidth")        # it scrolls in its own box
        light = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert sum(map(int, re.findall(r"\d+", light)[:3])) > 600 if scheme == "light" else 200
    with browser.new_context(viewport={"width": 1280, "height": 800}, color_scheme=scheme) as desktop:
        page = desktop.new_page()
        page.goto((built / "00_one.html").as_uri())
        assert len(LINE) == 88
        code = page.locator("pre", has_text="eighty_eight")
        assert code.evaluate("box => box.scrollWidth <= box.clientWidth")
        page.close()


def check_widths(built, browser, scheme):
    """Every page in a window of 390 pixels: nothing of it is wider."""
    with browser.new_context(viewport={"width": 390, "height": 844}, color_scheme=scheme) as phone:
        page = phone.new_page()
        for file in html_files(built):
            page.goto(file.as_uri())
            wide = page.evaluate("Math.max(document.documentElement.scrollWidth, document.body.scrollWidth)")
            main = page.evaluate("(document.querySelector('main') || document.body).scrollWidth")
            assert wide <= 390 and main <= 390, f"{file.relative_to(built)}: {wide} and {main} pixels"


@pytest.mark.slow
def test_the_committed_pages_make_a_site_without_a_broken_link(browser, monkeypatch, tmp_path):
    """outputs/rendered, with the cells that were added since, unexecuted."""
    monkeypatch.setenv("THESIS_OUTPUTS", str(tmp_path))
    made = {}
    for file in sorted((paths.root() / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        source, page = (json.loads((paths.root() / folder / file.name).read_text(encoding="utf-8"))
                        for folder in ("notebooks", "outputs/rendered"))
        known = {cell["id"] for cell in page["cells"]}
        page["cells"] += [cell for cell in source["cells"] if cell["id"] not in known]
        made[file.stem] = page
    built = site.assemble(made, {name: [] for name in made}).parent
    drawn = {name for name, page in made.items()
             if any("image/png" in output.get("data", {})
                    for cell in page["cells"] for output in cell.get("outputs", []))}
    assert {file.stem for file in (built / "thumbnails").iterdir()} == drawn and len(drawn) >= 19
    for page in html_files(built):
        assert not broken(page), page.name
    check_widths(built, browser, "light")


def test_a_reader_finds_the_way(built, browser):
    """From the index through every page of the navigation: no console error, picture or link that leads nowhere."""
    page, complaints, elsewhere = browser.new_page(), [], []
    page.on("console", lambda message: message.type == "error" and complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda asked: asked.url.startswith("http") and elsewhere.append(asked.url))
    page.goto((built / "index.html").as_uri())
    links = page.locator("nav.bd-links a.internal")
    seen = set()
    for target in [links.nth(number).get_attribute("href") for number in range(links.count())]:
        page.goto((built / target.partition("#")[0]).as_uri())
        seen.add(page.locator("h1").first.inner_text().strip(" #\n"))
        assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)"), target
        for href in page.eval_on_selector_all("a[href]", "all => all.map(one => one.href)"):
            address = urlparse(href)
            assert address.scheme != "file" or built.joinpath(unquote(address.path)).is_file(), f"{target}: {href}"
    assert {"00 One", "07 Two", "When it does not work"} <= seen
    page.goto((built / "00_one.html").as_uri())
    page.wait_for_selector("mjx-container", state="attached")           # the formula was set
    page.click("text=1 result rows")
    assert page.locator("table a").first.get_attribute("href").endswith(".json")
    page.goto((built / "search.html").as_uri() + "?q=formula")
    page.wait_for_selector("ul.search li")
    assert not complaints and not elsewhere
    page.close()


def test_a_row_that_is_gone_stops_the_build(at_home, monkeypatch):
    monkeypatch.setattr(site, "read_json", lambda file: {"rows": ["0123456789ab"]})
    with pytest.raises(site.SiteError, match=r"00_one: its result row 0123456789ab .*--only 00_one --force"):
        site.build("demo")


def test_a_stale_page_stops_the_build(at_home, capsys):
    folder, _ = at_home
    before = (folder / "07_two.ipynb").read_text()
    try:
        notebook(folder, "07_two", "07 Two, changed", DRAW)
        with pytest.raises(pages.PageError, match="07_two: stale"):
            site.build("demo")
        assert main(["docs"]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    finally:
        (folder / "07_two.ipynb").write_text(before)


def test_a_broken_link_stops_the_build(at_home, monkeypatch, tmp_path):
    guides = tmp_path / "docs"
    shutil.copytree(paths.guides(), guides)
    (guides / "guides" / "bad.md").write_text("# Bad\n\n[nowhere](nowhere.md)\n", encoding="utf-8")
    monkeypatch.setattr(paths, "guides", lambda: guides)
    with pytest.raises(site.SiteError, match=r"1 faults.*nowhere"):
        site.build("demo")
