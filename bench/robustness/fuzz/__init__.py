"""Fuzzing: whatever reads data from outside gets many malformed inputs. docs/fuzzing.md describes it."""
