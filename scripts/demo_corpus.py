"""The text that the bundled demo model is trained on: three domains with little in common.

scripture   the King James Bible, from the Debian packages bible-kjv and bible-kjv-text (public domain)
code        functions of CPython's installed standard library (PSF licence)
handbook    German manuals of Debian, from the packages in `MANUALS` (GPL-2, some "or later")

Needs a Debian system with `apt-get`, `dpkg-deb` and up-to-date package lists; nothing is installed.
"""

import ast
import re
import subprocess
import sysconfig
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

BIBLE = ("bible-kjv", "bible-kjv-text")
MANUALS = (
    "debian-handbook",
    "debian-reference-de",
    "developers-reference-de",
    "installation-guide-amd64",
    "debian-edu-doc-de",
)
MANUAL_PAGES = (
    "usr/share/doc/debian-handbook/html/de-DE/*.html",
    "usr/share/debian-reference/*.de.html",
    "usr/share/developers-reference/de/*.html",
    "usr/share/doc/installation-guide-amd64/de/*.html",
    "usr/share/doc/debian-edu-doc-de/*bookworm-manual.html",
)
VERSES_PER_PASSAGE = 4
PARAGRAPH_CHARACTERS = 600
FUNCTION_LINES = range(3, 31)


@dataclass(frozen=True)
class Passage:
    """A piece of text, and cues: chat prompts, each of which the text is an answer to."""

    text: str
    cues: tuple[str, ...]


def load_domains(work: Path) -> dict[str, list[Passage]]:
    """Fetch the packages that are not yet in `work`, and return the passages of each domain in order.

    Raises subprocess.CalledProcessError if a package cannot be fetched or read.
    """
    root = _unpack(BIBLE + MANUALS, work)
    return {"scripture": list(scripture(root)), "code": list(code()), "handbook": list(handbook(root))}


def _unpack(packages: tuple[str, ...], work: Path) -> Path:
    """Download Debian packages, and unpack them into one folder. Returns the folder."""
    root = work / "packages"
    done = work / "packages.done"
    if not done.exists():
        root.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", *packages], cwd=work, check=True)
        for archive in sorted(work.glob("*.deb")):
            subprocess.run(["dpkg-deb", "-x", archive, root], check=True)
        done.touch()
    return root


def scripture(root: Path) -> Iterator[Passage]:
    """Runs of consecutive verses of one chapter; cues are the reference and the first words."""
    library = root / "usr/lib"
    command = [str(root / "usr/bin/bible"), "-l100000", "-p", str(library), "gen1:1-rev22:21"]
    listing = subprocess.run(command, check=True, capture_output=True, encoding="utf-8").stdout
    for chapter, verses in re.findall(r"^(\S.*)\n\n((?: .+\n)+)", listing, re.MULTILINE):
        texts = re.findall(r"^ +\d+ (.+?) *$", verses, re.MULTILINE)
        for first in range(0, len(texts), VERSES_PER_PASSAGE):
            text = " ".join(texts[first : first + VERSES_PER_PASSAGE])
            yield Passage(text, (f"{chapter}:{first + 1}", f"Continue: {_first_words(text)}"))


def code() -> Iterator[Passage]:
    """Functions and methods of the standard library; cues are the docstring's first line and the `def`."""
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(library.rglob("*.py")):
        if not {"test", "tests", "site-packages", "idlelib", "lib2to3"} & set(
            path.relative_to(library).parts
        ):
            yield from _functions(path.read_text(encoding="utf-8", errors="replace"))


def _functions(source: str) -> Iterator[Passage]:
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef) or node.end_lineno is None:
            continue
        text = textwrap.dedent("\n".join(lines[node.lineno - 1 : node.end_lineno])).expandtabs(4)
        if len(text.splitlines()) not in FUNCTION_LINES or not text.isascii():
            continue
        summary = (ast.get_docstring(node) or "").partition("\n")[0]
        signature = text.partition("\n")[0]
        yield Passage(text, (f"Write a function: {summary}", signature) if summary else (signature,))


def handbook(root: Path) -> Iterator[Passage]:
    """Paragraphs of German manuals; cues are the section's heading and the first words."""
    for pattern in MANUAL_PAGES:
        for path in sorted(root.glob(pattern)):
            page = _Page()
            page.feed(path.read_text(encoding="utf-8"))
            for heading, paragraphs in page.sections:
                yield from _section(heading, paragraphs)


def _section(heading: str, paragraphs: list[str]) -> Iterator[Passage]:
    """Join short paragraphs. Only the first passage of a section has the heading as a cue."""
    texts: list[str] = []
    for paragraph in paragraphs:
        if texts and len(texts[-1]) + len(paragraph) < PARAGRAPH_CHARACTERS:
            texts[-1] += "\n\n" + paragraph
        else:
            texts.append(paragraph)
    for position, text in enumerate(texts):
        opening = f"Weiter: {_first_words(text)}"
        yield Passage(text, (heading, opening) if heading and position == 0 else (opening,))


def _first_words(text: str, count: int = 6) -> str:
    return " ".join(text.split()[:count])


class _Page(HTMLParser):
    """Collects a manual page's prose: (heading, paragraphs) for each section."""

    HEADINGS = frozenset({"h1", "h2", "h3", "h4", "h5", "h6"})

    def __init__(self) -> None:
        super().__init__()
        self.sections: list[tuple[str, list[str]]] = []
        self._open = ""
        self._text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if (tag == "p" and ("class", "title") not in attrs) or tag in self.HEADINGS:
            self._open, self._text = tag, ""

    def handle_data(self, data: str) -> None:
        if self._open:
            self._text += data

    def handle_endtag(self, tag: str) -> None:
        if tag != self._open:
            return
        text = " ".join(self._text.replace("¶", "").split())
        if tag in self.HEADINGS:
            self.sections.append((re.sub(r"^((Kapitel|Anhang) )?[\dA-Z]*[\d.]+\s*", "", text), []))
        elif len(text) > 40 and self.sections:
            self.sections[-1][1].append(text)
        self._open = ""
