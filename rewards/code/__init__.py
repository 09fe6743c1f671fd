"""Programs judged by running them: assertions, or standard input and output."""

from rewards.code.grading import grade, grade_stdio
from rewards.code.reward import PassesTests

__all__ = ["PassesTests", "grade", "grade_stdio"]
