"""All notebooks: their anatomy, and one run of the whole smoke profile through the command line."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import threading

import nbformat
import papermill
import pytest
import yaml

from thesis_lib.batch import worker
from thesis_lib.batch.plan import parameters_of, plan
from thesis_lib.core import paths, results
from thesis_lib.networks import weightfiles
from thesis_lib.report import pages, tables

SOURCES = sorted(paths.notebooks().glob("*.ipynb"))


def code_of(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.fixture(params=SOURCES, ids=lambda file: file.stem)
def notebook(request):
    return request.param, nbformat.read(request.param, as_version=4)


def test_valid_clean_and_without_definitions(notebook):
    _, content = notebook
    nbformat.validate(content)
    assert "papermill" not in content.metadata
    for cell in code_of(content):
        assert not cell.outputs and cell.execution_count is None
        assert not [node for node in ast.parse(cell.source).body
                    if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef)]
        named = "parameters" in cell.metadata.get("tags", [])       # a list does nothing, however long it is
        count = len(cell.source.splitlines())
        assert named or count <= 21, f"a cell of {count} lines does too much"


def test_head_names_section_and_question(notebook):
    file, content = notebook
    head = content.cells[0].source
    title, about, question = rf"# {file.stem[:2]} ", "**Thesis:**", r"\*\*Question:\*\*[^?]*\?"
    assert re.match(title, head) and about in head and re.search(question, head)
    assert "parameters" in content.cells[1].metadata.get("tags", [])
    assert "stamp.show()" in content.cells[2].source


def test_every_parameter_is_explained_read_and_seen_by_papermill(notebook):
    file, content = notebook
    parameters = parameters_of(file)
    rest = "\n".join(cell.source for cell in code_of(content)[1:])
    names = {node.id for node in ast.walk(ast.parse(rest)) if isinstance(node, ast.Name)}
    for name, (_, _, text) in parameters.items():
        assert text, f"{name} has no comment"
        assert name in names, f"{name} is never read"
    assert set(papermill.inspect_notebook(str(file))) == set(parameters)


def test_results_depend_on_nothing_typed_twice():
    """The titles in README's table and those of the notebooks are the same."""
    readme = (paths.root() / "README.md").read_text(encoding="utf-8")
    lines = list(tables.contents("nothing executed").itertuples())
    assert len(lines) == len(SOURCES) == readme.count("](outputs/rendered/") - 2 == 20      # two stand in the text
    for line in lines:
        title, file = re.match(r"\[(.*)\]\((.*)\)", line.notebook).groups()
        assert f"| [{title}](outputs/rendered/{file}) | {line.thesis} | {line.question} |" in readme


def test_profiles_plan():
    profiles = yaml.safe_load((paths.notebooks() / "runs.yml").read_text(encoding="utf-8"))
    for profile in profiles.keys() - {"real"}:
        order = [task.notebook.stem for task in plan(profile)]
        assert sorted(set(order)) == [file.stem for file in SOURCES] and order[-1] == "00_start_here"
    assert [task.notebook.stem for task in plan("real")] == ["19_real_pictures"]


@pytest.mark.slow
def test_the_profile_real_measures_a_folder_and_goes_on(make_category, tmp_path):
    """From a folder of pictures and one of weights to the page: five draws of PaDiM, and seconds for a second call."""
    (tmp_path / "weights").mkdir()
    shutil.copy(weightfiles.bundled("resnet18"), tmp_path / "weights" / "resnet18_own.safetensors")
    command = [sys.executable, "-m", "thesis_lib.commands.main", "run", "--profile", "real", "-p",
               f"data={make_category()}", "-p", f"weights={tmp_path / 'weights'}", "-p", "parts=[padim]"]
    environment = os.environ | {"THESIS_OUTPUTS": str(tmp_path / "outputs")}
    for state in ("done", "skipped"):
        ended = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert ended.returncode == 0 and f"1 notebooks: 1 {state}" in ended.stdout, ended.stdout + ended.stderr
    page = (tmp_path / "outputs" / "notebooks" / "real" / "19_real_pictures.ipynb").read_text(encoding="utf-8")
    assert "0 of 1 configurations are measured" in page and "padim: 1 of 1 measured" in page and "padim: usual" in page
    [line] = results.read(tmp_path / "outputs" / "real" / "real.jsonl")
    assert len(line["image_auroc"]) == 5 and line["image_auroc_low"] <= min(1, sum(line["image_auroc"]) / 5)


def test_smoke_profile_runs_resumes_and_can_be_shown(demo_data, tmp_path):
    """`thesis run` as README gives it: every notebook done, the second call skips all in seconds."""
    environment = os.environ | {"THESIS_DATA": str(demo_data.parent), "THESIS_OUTPUTS": str(tmp_path)}
    command = [sys.executable, "-m", "thesis_lib.commands.main", "run", "--profile", "smoke"]
    first = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert first.returncode == 0, first.stdout + first.stderr
    assert f"{len(SOURCES)} notebooks: {len(SOURCES)} done" in first.stdout
    second = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert second.returncode == 0 and f"{len(SOURCES)} notebooks: {len(SOURCES)} skipped" in second.stdout

    for file in SOURCES:
        executed = nbformat.read(tmp_path / "notebooks" / "smoke" / file.name, as_version=4)
        pages.shown(file.stem, executed)
        outputs = [output for cell in code_of(executed) for output in cell.outputs]
        assert not any("application/vnd.jupyter.widget-view+json" in output.get("data", {}) for output in outputs)
    start = (tmp_path / "notebooks" / "smoke" / "00_start_here.ipynb").read_text(encoding="utf-8")
    assert "not executed yet" not in start.split("## A detector in four lines")[0], "00 runs before the others"


OTHER_PROCESSOR = """import logging, tqdm, warnings
import torch
from thesis_lib.core import paths
from thesis_lib.networks import engines
torch.cpu._is_vnni_supported = lambda: False
engines.reduce_range = lambda *cpuinfo: True
warnings.warn(f"{paths.root()}/torch/ao: no VNNI here")
logging.getLogger("torch").warning(f"no triton in {paths.root()}")
list(tqdm.tqdm(range(3)))
"""


def test_what_libraries_print_on_another_processor_is_on_no_page(demo_data, tmp_path, monkeypatch):
    """Without VNNI torch.ao warns with the path of its file; such lines, logs and bars stay in the executed copy."""
    monkeypatch.setenv("THESIS_DATA", str(demo_data.parent))
    task = plan("smoke", only=["04"])[0]
    source = nbformat.read(task.notebook, as_version=4)
    source.cells.insert(2, nbformat.v4.new_code_cell(OTHER_PROCESSOR))
    nbformat.write(source, tmp_path / "other.ipynb")
    output = tmp_path / "04.ipynb"
    ended = worker.execute(tmp_path / "other.ipynb", task.parameters, output, timeout_s=300, threads=1,
                           stop=threading.Event(), rows=tmp_path / "rows.json")
    assert ended == ("done", "")
    executed = output.read_text(encoding="utf-8")
    assert "no VNNI here" in executed and "no triton in" in executed and "3/3" in executed
    text = pages.shown("04", nbformat.reads(executed, as_version=4))
    assert "stderr" not in text and str(paths.root()) not in text
    kept, whole = ("".join(str(cell) for cell in nbformat.reads(page, as_version=4).cells) for page in (text, executed))
    assert len(kept) > 0.9 * len(whole)


@pytest.mark.parametrize("spoil", ["error", "stale", "path", "size", "unexecuted", "failed", "dirty"])
def test_render_refuses(spoil, tmp_path, monkeypatch):
    monkeypatch.setenv("THESIS_OUTPUTS", str(tmp_path))
    task = plan("smoke", only=["02"])[0]
    monkeypatch.setattr(pages, "plan", lambda profile: [task])
    output = nbformat.v4.new_output("error", ename="Boom", evalue="", traceback=[]) if spoil == "error" else \
        nbformat.v4.new_output("stream", text={"path": str(tmp_path), "size": "x" * 2_000_000,
                                               "dirty": "  commit  0123456789ab-dirty\n"}.get(spoil, ""))
    page = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 + 1", outputs=[output])])
    task.output.parent.mkdir(parents=True)
    nbformat.write(page, task.output)
    task.record.write_text(json.dumps({"state": spoil if spoil == "failed" else "done", "message": "KeyError (In [3])",
                                       "key": "old" if spoil == "stale" else task.key}))
    if spoil == "unexecuted":
        task.record.unlink()
    reason = {"error": "Boom", "stale": "stale", "unexecuted": "was not executed", "failed": "failed.*KeyError",
              "dirty": "its stamp says -dirty.*--only 02_auroc --force",
              "path": "cell 1 shows the folder .*: show the path relative", "size": r"2\.0 MB"}[spoil]
    with pytest.raises(pages.PageError, match=f"02_auroc.*{reason}"):
        pages.publish("smoke")
    assert not paths.rendered().exists()


def test_the_committed_set_is_whole_and_shows_no_machine():
    committed = sorted((paths.root() / "outputs" / "rendered").glob("*.ipynb"))
    assert [file.name for file in committed] == [file.name for file in SOURCES]
    for file in committed:
        text = file.read_text(encoding="utf-8")
        assert file.stat().st_size < 1.5e6
        assert not re.search(r'"output_type": "error"|/(home|root|Users|work|tmp)/', text)
        assert re.search(r'"exception": (null|false)', text) and '"execution_count": 3' in text


def test_no_committed_page_is_of_changed_files():
    for file in sorted((paths.root() / "outputs" / "rendered").glob("*.ipynb")):
        assert not pages.DIRTY.search(file.read_text(encoding="utf-8")), file.name
