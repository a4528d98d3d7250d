"""`python -m control_plane` is `faasmoe`."""

from control_plane.cli import main

main(prog_name="faasmoe")
