"""What goes wrong on a user's side: one sentence that names the place, the cause and the fix."""


def first_line(error: BaseException) -> str:
    """The first line of what a library's `error` says, or its class where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


class OpdError(Exception):
    """A fault that the user can mend; the command prints it without a traceback and exits."""

    exit_code = 1


class RecipeError(OpdError):
    """The recipe, an override or the command line is wrong."""

    exit_code = 2


class SandboxError(OpdError):
    """Programs that a model wrote cannot be run safely here."""

    exit_code = 3


class DataError(OpdError):
    """A dataset, tokenizer or stored rollout is missing, malformed or does not fit."""

    exit_code = 4


class EngineError(OpdError):
    """The rollout engine failed, or disagrees with the trainer."""

    exit_code = 5


class CollapseError(OpdError):
    """The guard of the recipe has stopped the run: its numbers do what they must not."""

    exit_code = 7


class NumericError(OpdError):
    """A loss or gradient is not finite, so that no update can be trusted."""

    exit_code = 6
