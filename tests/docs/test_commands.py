"""Every command and every Python example of README.md and docs/ runs, and those that cannot run here say why."""

import pytest
import typer
from docs.pages import REASONS, ROOT, THIN, blocks, is_run, pages, shell, words_of

from calmrl_lab.cli import app

PAGES = [page for page in pages() if any(is_run(block) for block in blocks(page))]
EVERY = [block for page in pages() for block in blocks(page)]


def name(page):
    return str(page.relative_to(ROOT))


def _slow(page):
    return any(block.mark in ("slow", THIN) for block in blocks(page))


@pytest.mark.parametrize(
    "page", [pytest.param(page, id=name(page), marks=[pytest.mark.slow] if _slow(page) else []) for page in PAGES]
)
def test_a_page_runs_from_top_to_bottom(page, room, cli):
    room(page)
    namespace = {"__name__": "__page__"}
    for block in filter(is_run, blocks(page)):
        if block.language == "python":
            exec(compile(block.text, block.where, "exec"), namespace)
            continue
        for command, shown in block.commands():
            words = words_of(command)
            code, out, err = cli(*words) if words is not None else shell(command)
            expected = next((line for line in shown.splitlines() if line.startswith("error: ")), None)
            if expected is None:
                assert code == 0, f"{block.where}: {command}\n{out}{err}"
            else:
                assert code in (1, 2), f"{block.where}: {command} was to fail"
                assert expected in err, f"{block.where}: {command}\n{err}"


@pytest.mark.parametrize("block", [pytest.param(block, id=block.where) for block in EVERY if block.reason is not None])
def test_what_is_not_run_says_why_and_still_parses(block):
    assert block.reason in REASONS, f"{block.where}: '{block.reason}' is not among the reasons in tests/docs/pages.py"
    for command, _ in block.commands():
        words = words_of(command)
        if words is not None:
            _parse(words, block.where)


def _parse(words, where):
    """The command line as click sees it, without running it: unknown commands and options, and wrong types, are errors."""
    command = typer.main.get_command(app)
    path = []
    while hasattr(command, "commands"):
        assert words, f"{where}: '{' '.join(path)}' is no whole command"
        assert words[0] in command.commands, f"{where}: there is no command '{' '.join([*path, words[0]])}'"
        path.append(words[0])
        command, words = command.commands[words[0]], words[1:]
    try:
        command.make_context(" ".join(path), list(words))
    except Exception as error:
        pytest.fail(f"{where}: calmrl-lab {' '.join([*path, *words])}: {error}")


def test_no_command_hides_outside_a_block_that_is_run_or_explained():
    hidden = [
        f"{block.where}: {line}"
        for block in EVERY
        if block.reason is None and block.file is None and block.language != "console"
        for line in block.text.splitlines()
        if line.startswith("$ ")
    ]
    assert hidden == []


def test_a_console_block_shows_what_was_typed():
    for block in EVERY:
        if block.language == "console":
            assert block.commands(), f"{block.where}: no line starts with '$ '"


def test_most_commands_are_run():
    ran = sum(len(block.commands()) for block in EVERY if is_run(block))
    explained = sum(len(block.commands()) for block in EVERY if block.reason is not None)
    assert ran > explained
