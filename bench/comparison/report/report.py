"""Writes the report of a folder of results: report.md, report.html (a single file), and plots."""

import base64
from pathlib import Path

import click
import jinja2

from bench.comparison.measuring.recording import Recording
from bench.comparison.report.tables import tables
from control_plane.errors import ConfigError

TEMPLATE = Path(__file__).with_name("report.html.j2")


def write_report(folder: Path) -> list[Path]:
    """Write the report into the folder of the results, and return its files. Raises `ConfigError`.

    Without matplotlib there are no plots, and a line on standard error says so.
    """
    recording = Recording.load(folder)
    if not recording.results:
        raise ConfigError(f"{folder} has results of no strategy yet")
    found = tables(recording)
    try:
        images = _plots(recording)
        text = "\n".join(table.markdown() for table in found)
        pictures = "".join(f"![{image.stem}]({image.name})\n\n" for image in images)
        markdown, html = folder / "report.md", folder / "report.html"
        markdown.write_text(f"# {recording.run.workload}\n\n{pictures}{text}", encoding="utf-8")
        environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
        page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
            run=recording.run,
            tables=found,
            images=[(image.stem, base64.b64encode(image.read_bytes()).decode()) for image in images],
        )
        html.write_text(page, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write to {folder}: {error.strerror}") from error
    return [markdown, html, *images]


def _plots(recording: Recording) -> list[Path]:
    try:
        import matplotlib as mpl
    except ModuleNotFoundError:
        click.echo("no plots: matplotlib is not installed (faasmoe's extra bench)", err=True)
        return []
    mpl.use("agg")  # This backend needs no display.
    from bench.comparison.report import plots

    return plots.write(recording, recording.folder)
