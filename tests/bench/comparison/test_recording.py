"""Results are written as JSON, read back unchanged, and not overwritten by another run."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bench.comparison.measuring.recording import Recording
from control_plane.errors import ConfigError
from tests.support.comparison_results import RUN, measured


def test_results_are_read_back_unchanged(tmp_path: Path) -> None:
    recording = Recording.begin(tmp_path / "new" / "results", RUN)
    for one in (measured("baseline"), measured("faasmoe-shared", size=20), measured("local", problem="gone")):
        recording.add(one)
    assert Recording.load(recording.folder) == recording
    assert set(recording.results) == {"baseline", "faasmoe-shared-20", "local"}


def test_times_are_rounded_to_a_tenth_of_a_millisecond(tmp_path: Path) -> None:
    recording = Recording.begin(tmp_path, RUN)
    recording.add(replace(measured("local"), ready_seconds=1 / 3))
    assert json.loads((tmp_path / "local.json").read_text())["ready_seconds"] == 0.3333


def test_a_repeated_measurement_replaces_the_earlier_result(tmp_path: Path) -> None:
    recording = Recording.begin(tmp_path, RUN)
    recording.add(measured("local", problem="crashed"))
    recording.add(measured("local"))
    assert not Recording.load(tmp_path).results["local"].problem


def test_results_are_not_overwritten_by_another_run(tmp_path: Path) -> None:
    Recording.begin(tmp_path, RUN)
    with pytest.raises(ConfigError, match="has results already"):
        Recording.begin(tmp_path, RUN)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"strategy": 1}'])
def test_the_error_names_a_file_that_is_no_result(tmp_path: Path, content: str) -> None:
    Recording.begin(tmp_path, RUN)
    (tmp_path / "local.json").write_text(content)
    with pytest.raises(ConfigError, match=r"local\.json is no result"):
        Recording.load(tmp_path)


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no results"):
        Recording.load(tmp_path)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write"):
        Recording.begin(tmp_path / "file" / "results", RUN)
