from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from cluster import cli, schemas
from tomoray import __version__
from tomoray.assembly.reasons import ABOUT
from tomoray.catalog import SCHEMA
from tomoray.errors import Reason

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
PACKAGES = ("tomoray", "cluster", "jobs", "serving")


def text(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def blocks(page: Path) -> str:
    """The fenced code of a page."""
    return "\n".join(
        re.findall(r"^```\w*\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    )


def inline(page: Path) -> str:
    """The code within sentences, a line each."""
    prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return "\n".join(" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_shown_parses(page: Path) -> None:
    commands = typer.main.get_command(cli.app).commands
    for line in re.findall(r"^tomoray .*$", blocks(page), flags=re.MULTILINE):
        _, name, *arguments = shlex.split(line.partition(" > ")[0], comments=True)
        command = commands[name]
        while hasattr(command, "commands"):
            name, *arguments = arguments
            command = command.commands[name]
        command.make_context(name, arguments)
    for name in re.findall(r"^tomoray ([a-z][a-z-]*)", inline(page), flags=re.MULTILINE):
        assert name in commands


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_make_target_shown_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", text("Makefile"), flags=re.MULTILINE))
    shown = re.findall(r"^make ([a-z ]+?)(?: *#.*)?$", blocks(page) + "\n" + inline(page), flags=re.MULTILINE)
    assert {target for line in shown for target in line.split()} <= targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_the_map_lists_every_module_and_no_other() -> None:
    listed: set[str] = set()
    folders: list[str] = []
    for line in blocks(ROOT / "docs/architecture.md").splitlines():
        if match := re.match(r"((?:  )*)((?:\w+(?:\.py|/) *)+) ", line):
            folders = folders[: len(match[1]) // 2]
            names = ["".join([*folders, name]) for name in match[2].split()]
            listed |= set(names)
            folders.append(names[-1].removeprefix("".join(folders)))
    listed = {name for name in listed if name.startswith(PACKAGES) and name.count("/") + (name[-1] != "/") > 1}
    there = {
        path.relative_to(ROOT).as_posix() + ("/" if path.is_dir() else "")
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.name not in {"__init__.py", "__pycache__"} and (path.is_dir() or path.suffix == ".py")
    }
    told_as_one = {
        name
        for name in listed
        if name[-1] == "/" and not any(other != name and other.startswith(name) for other in listed)
    }
    there = {path for path in there if not any(path != whole and path.startswith(whole) for whole in told_as_one)}
    assert listed == there


def test_every_reason_is_explained() -> None:
    explained = re.findall(r"^\| `(\w+)` \| \S", text("docs/reasons.md"), flags=re.MULTILINE)
    assert sorted(explained) == sorted(reason.value for reason in Reason)


def test_reasons_are_explained_alike_in_the_docs_and_by_the_command_line() -> None:
    plain = text("docs/reasons.md").replace("`", "")
    rows = re.findall(r"^\| ([a-z]\w+) \| (.+?) \| (.+?) \|$", plain, flags=re.MULTILINE)
    shown = {code: (meaning, advice) for code, meaning, advice in rows if code != "code"}
    assert shown == {str(reason): (about.meaning, about.advice) for reason, about in ABOUT.items()}


def test_every_catalog_column_is_explained() -> None:
    explained = re.findall(r"^\| (`.*?`) \|", text("docs/archive.md"), flags=re.MULTILINE)
    assert sorted(re.findall(r"`(\w+)`", " ".join(explained))) == sorted(SCHEMA.names)


def test_every_variable_read_is_explained() -> None:
    read = set(re.findall(r'os\.environ\.get\("(\w+)"\)', text("tomoray/settings.py")))
    explained = set(re.findall(r"`([A-Z][A-Z_0-9]+)`", text("docs/configs.md")))
    assert explained == read


@pytest.mark.parametrize("name", sorted(schemas.CONFIGS))
def test_schema_file_is_current(name: str, tmp_path: Path) -> None:
    schemas.write(tmp_path)
    written = (tmp_path / f"{name}.json").read_text(encoding="utf-8")
    assert text(f"docs/schemas/{name}.json") == written, "run: make schemas"
    assert f"docs/schemas/{name}.json" in text("docs/configs.md").replace("(schemas/", "(docs/schemas/")


def test_changelog_has_a_section_for_this_version_or_for_the_next() -> None:
    assert re.search(rf"^## (Unreleased|{re.escape(__version__)}\b)", text("CHANGELOG.md"), flags=re.MULTILINE)


def test_decisions_are_numbered_without_a_gap() -> None:
    numbers = [int(path.name[:4]) for path in sorted((ROOT / "docs/adr").glob("*.md"))]
    assert numbers == list(range(1, len(numbers) + 1))
    for path in (ROOT / "docs/adr").glob("*.md"):
        headings = re.findall(r"^## (.*)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        assert headings == ["Context", "Choice", "Cost"], path.name


def test_lock_pins_what_the_project_wants() -> None:
    wanted = re.findall(
        r'^    "([a-z0-9-]+)', text("pyproject.toml").partition("[project.scripts]")[0], flags=re.MULTILINE
    )
    locked = set(re.findall(r"^([a-z0-9-]+)==", text("requirements.lock"), flags=re.MULTILINE))
    assert set(wanted) - {"hatchling"} <= locked
