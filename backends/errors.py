"""What can go wrong with an engine, one class per kind of trouble that a caller can act on."""

from backends.base import Exit


class BackendError(Exception):
    """Base of every error of this package; the text is one line for the user."""


class BackendUnavailable(BackendError):
    """The engine is missing, too old, or not supported here."""


class ConfigError(BackendError):
    """The application's configuration file makes no sense; `where` names the key."""

    def __init__(self, where: str, problem: str) -> None:
        super().__init__(f"configuration: {where}: {problem}" if where else f"configuration: {problem}")
        self.where = where


class AlreadyRunning(BackendError):
    """The engine has a running copy of this application."""


class NotRunning(BackendError):
    """The engine has no running copy of this application."""


class StartFailed(BackendError):
    """The application did not start, or did not live long enough to count as started.

    `executed` is False only when it is certain that not one instruction of the application ran: a migration may then
    still be called off. `exit` tells how it ended, `log_tail` what it printed last.
    """

    def __init__(self, problem: str, *, executed: bool, exit: Exit | None = None, log_tail: str = "") -> None:
        super().__init__(f"{problem}; last output: {log_tail}" if log_tail else problem)
        self.executed = executed
        self.exit = exit
        self.log_tail = log_tail


class SuspendFailed(BackendError):
    """The application could not be suspended; `running` tells whether it runs again (or still) here."""

    def __init__(self, problem: str, *, running: bool) -> None:
        super().__init__(problem)
        self.running = running


class HookFailed(BackendError):
    """A hook of the configuration ended badly or took too long; `hook` names it."""

    def __init__(self, hook: str, problem: str) -> None:
        super().__init__(f"hook {hook}: {problem}")
        self.hook = hook


class StopFailed(BackendError):
    """Processes of the application survived SIGKILL; `pids` are left."""

    def __init__(self, problem: str, pids: tuple[int, ...]) -> None:
        super().__init__(problem)
        self.pids = pids
