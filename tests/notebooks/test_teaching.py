"""What a page needs to teach with: lines that fit, predictions with their answers, exercises whose solutions run."""

import ast
import itertools
import re
import threading

import nbformat
import pytest

from thesis_lib.batch import worker
from thesis_lib.batch.plan import parameters_of, plan
from thesis_lib.core import paths

TAUGHT = ("01", "02", "05")              # pages that have all of it
WIDTH = 88
SOLUTION = re.compile(r"<summary>Solution</summary>\n\n```python\n(.*?)\n```\n\n</details>", re.DOTALL)


@pytest.fixture(params=TAUGHT)
def page(request):
    file = next(paths.notebooks().glob(f"{request.param}_*.ipynb"))
    return file, nbformat.read(file, as_version=4)


def test_no_line_is_cut_off(page):
    for cell in page[1].cells:
        long = [line for line in cell.source.splitlines() if len(line) > WIDTH]
        assert not long, f"{cell.id}: {long[0]}"


def test_what_is_to_be_predicted_is_answered_by_the_code_below(page):
    cells = page[1].cells
    asked = [index for index, cell in enumerate(cells) if "**Predict.**" in cell.source]
    assert asked
    for index in asked:
        assert cells[index].cell_type == "markdown", cells[index].id
        below = itertools.takewhile(lambda cell: cell.cell_type == "code", cells[index + 1:])
        assert any("**Answer.**" in cell.source for cell in below), cells[index].id


def test_two_exercises_with_hint_and_solution_and_parameters_to_try(page):
    file, notebook = page
    [cell] = [cell for cell in notebook.cells if cell.source.startswith("## Exercises")]
    assert len(SOLUTION.findall(cell.source)) == cell.source.count("<summary>Hint</summary>") == 2
    assert cell.source.count("<details>") == cell.source.count("</details>") == 4
    tried = re.findall(r"\*\*Try\*\*(.*?)(?=\*\*Try\*\*|\Z)", cell.source, re.DOTALL)
    assert tried
    for text in tried:
        named = [re.split(r"\W", word)[0] for word in re.findall(r"`([^`]+)`", text)]
        assert named and set(named) <= set(parameters_of(file)), text


@pytest.mark.slow
def test_solutions_run_and_check_themselves(page, demo_data, tmp_path, monkeypatch):
    """With the smoke profile, each after the cells above its exercise."""
    monkeypatch.setenv("THESIS_DATA", str(demo_data.parent))
    file, notebook = page
    cells = []
    for cell in notebook.cells:
        solutions = [nbformat.v4.new_code_cell(source) for source in SOLUTION.findall(cell.source)]
        assert all(any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(one.source))) for one in solutions)
        cells += [cell, *solutions]
    notebook.cells = cells
    nbformat.write(notebook, tmp_path / file.name)
    task = plan("smoke", only=[file.stem])[0]
    ended = worker.execute(tmp_path / file.name, task.parameters, tmp_path / "executed.ipynb", timeout_s=600, threads=1,
                           stop=threading.Event(), rows=tmp_path / "rows.json")
    assert ended == ("done", "")
