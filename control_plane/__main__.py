"""Runs `python -m control_plane` as `faasmoe`."""

from control_plane.cli.main import main

main(prog_name="faasmoe")
