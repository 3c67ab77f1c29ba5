"""What training talks to in tests."""

from __future__ import annotations


class Screen:
    """Takes what training says; `at` calls something after a step."""

    def __init__(self, at=None):
        self.lines, self.warnings, self.begun, self.steps = [], [], None, []
        self._at = at or {}

    def begin(self, *, total, done):
        self.begun = (total, done)

    def step(self, step):
        self.steps.append(step)
        if step.number in self._at:
            self._at[step.number]()

    def note(self, text):
        self.lines.append(text)

    def warn(self, text):
        self.warnings.append(text)
