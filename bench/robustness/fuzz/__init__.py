"""Fuzzing: whatever reads data from outside gets many malformed inputs. docs/robustness.md describes it."""
