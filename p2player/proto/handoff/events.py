"""What goes into the machines of a hand-off, and what comes out.

Outputs are carried out in order. A `Journal` must be durable before the output behind it begins; everything else may
run in the background and answers, if at all, with an event. An `Act` asks this node's parts for something that takes
time; its result comes back as `Done` or `Broke` under the same token.
"""

from dataclasses import dataclass, field
from enum import StrEnum

from p2player.proto.handoff.messages import Image, Message, Mode, Need, Offer, Pulled
from p2player.proto.handoff.records import Prediction, Record


class AppState(StrEnum):
    """What the app's record says while a migration has it."""

    MIGRATING = "migrating"
    IN_DOUBT = "in_doubt"


class Timer(StrEnum):
    """The clocks of a machine; each runs at most once at a time."""

    RETRY = "retry"
    """Say it again, or give up on a peer that stays silent."""
    FREEZE = "freeze"
    """The final transfer has used up its budget."""
    HEARTBEAT = "heartbeat"
    """Tell the other end that work goes on."""
    ACT = "act"
    """Try an engine action once more."""
    JOURNAL = "journal"
    """Try to write once more."""
    PATIENCE = "patience"
    """Do not wait any longer."""


# -- actions at the source


@dataclass(frozen=True, slots=True)
class MakePlan:
    """Predict, from what the destination lacks. Result: `Planned`."""

    base: Need
    app: Need
    basis_bytes: int


@dataclass(frozen=True, slots=True)
class Planned:
    """The plan. With `refusals`, nothing is begun."""

    prediction: Prediction
    refusals: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TakeImage:
    """Save (unless final) and import the instance layer into the vault. Result: `Imaged`."""

    number: int
    final: bool


@dataclass(frozen=True, slots=True)
class Imaged:
    """An image.

    Attributes:
        delta_bytes: uncompressed bytes in chunks that the image before did not have.
        pause_s: seconds in which the app did not run for it.
        as_delta: whether the destination probably has an image that these chunks can be fetched as deltas of.
    """

    image: Image
    delta_bytes: int
    pause_s: float = 0.0
    as_delta: bool = False


@dataclass(frozen=True, slots=True)
class Suspend:
    """Suspend the app; in cold mode stop it. Result: None."""

    mode: Mode


@dataclass(frozen=True, slots=True)
class EnsureSuspended:
    """After a restart, with a grant out: make sure that no copy runs here. Result: None."""


@dataclass(frozen=True, slots=True)
class Resume:
    """Let the app run here at `epoch`; a running one is left alone. Result: `Resumed`."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Resumed:
    """It runs. `since_start_s`: how long already, health checks included."""

    since_start_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Release:
    """Nothing was suspended: take the mark off the app, and start one that died with its machine. Result: None."""


@dataclass(frozen=True, slots=True)
class Destroy:
    """Remove the copy here, unless the app came back since at a higher epoch than `epoch`. Result: None."""

    epoch: int


# -- actions at the destination


@dataclass(frozen=True, slots=True)
class Preflight:
    """Look for reasons to refuse. Result: `Checked`."""

    offer: Offer


@dataclass(frozen=True, slots=True)
class Checked:
    """What preflight found; with `refusals`, the migration is refused."""

    refusals: tuple[str, ...]
    base: Need = field(default_factory=Need)
    app: Need = field(default_factory=Need)
    basis_bytes: int = 0


@dataclass(frozen=True, slots=True)
class PullLayers:
    """Pull base and app, check them out, stage the app, make the vault. Result: `LayersPulled`."""

    offer: Offer
    key: bytes


@dataclass(frozen=True, slots=True)
class LayersPulled:
    """Both are here."""

    base: Pulled
    app: Pulled


@dataclass(frozen=True, slots=True)
class PullImage:
    """Pull an image; the final one is also put in place and made durable. Result: `Pulled`."""

    number: int
    image: Image
    final: bool


@dataclass(frozen=True, slots=True)
class FindCopy:
    """Ask the engine and the app's record whether the app is here at `epoch` or above. Result: `Found`."""

    app_id: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Found:
    """`owned`: the record says that it belongs here. `running`: the engine has a running copy."""

    owned: bool
    running: bool


@dataclass(frozen=True, slots=True)
class Restore:
    """Let the engine continue the app here at `epoch`. Result: `Resumed`; `Broke.executed` matters.

    `owned`: an earlier try may have executed it, so it belongs here whatever becomes of this one.
    """

    epoch: int
    running: bool
    owned: bool = False


@dataclass(frozen=True, slots=True)
class RunHook:
    """Run the after_restore hook. Result: its warning, or an empty text."""


@dataclass(frozen=True, slots=True)
class Discard:
    """Stop and remove what this migration put here, unless the app came back since above `epoch`. Result: None."""

    epoch: int


Action = (
    MakePlan
    | TakeImage
    | Suspend
    | EnsureSuspended
    | Resume
    | Release
    | Destroy
    | Preflight
    | PullLayers
    | PullImage
    | FindCopy
    | Restore
    | RunHook
    | Discard
)

Result = Planned | Imaged | Resumed | Checked | LayersPulled | Pulled | Found | str | None


# -- events


@dataclass(frozen=True, slots=True)
class Received:
    """A message of the other end; the shell has checked who sent it."""

    message: Message


@dataclass(frozen=True, slots=True)
class Done:
    """The action of that token succeeded."""

    token: int
    result: Result = None


@dataclass(frozen=True, slots=True)
class Broke:
    """The action of that token failed. `executed`: whether the app may have run any instruction because of it."""

    token: int
    code: str
    reason: str
    executed: bool = False


@dataclass(frozen=True, slots=True)
class Advanced:
    """The action that runs has moved `done` of `total` bytes."""

    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Fired:
    """A timer that was set has run out."""

    timer: Timer


@dataclass(frozen=True, slots=True)
class Unwritten:
    """A record could not be made durable, so it and the outputs behind it were not carried out."""

    outputs: "tuple[Output, ...]"


@dataclass(frozen=True, slots=True)
class Undelivered:
    """A message could not be brought to the other node, or nobody knows whether it was."""

    reason: str


@dataclass(frozen=True, slots=True)
class Rejected:
    """The other node answered a message with an error: it will not hear of this migration, whatever is said."""

    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class Cancel:
    """The operator calls it off; heeded before the grant only."""

    reason: str


@dataclass(frozen=True, slots=True)
class Ask:
    """The operator wants to know what became of a grant: ask again now."""


@dataclass(frozen=True, slots=True)
class Force:
    """The operator takes the app back without an answer."""


Event = Received | Undelivered | Rejected | Done | Broke | Advanced | Fired | Unwritten | Cancel | Ask | Force


# -- outputs


@dataclass(frozen=True, slots=True)
class Journal:
    """Make this durable before anything behind it."""

    record: Record


@dataclass(frozen=True, slots=True)
class Send:
    """Send this to the other end; whether it arrives is not told."""

    message: Message


@dataclass(frozen=True, slots=True)
class Act:
    """Begin an action in the background."""

    token: int
    action: Action


@dataclass(frozen=True, slots=True)
class StopAct:
    """End that action if it runs; no result is wanted any more."""

    token: int


@dataclass(frozen=True, slots=True)
class SetTimer:
    """Run this timer (anew) until `at`."""

    timer: Timer
    at: float


@dataclass(frozen=True, slots=True)
class ClearTimer:
    """Stop this timer."""

    timer: Timer


@dataclass(frozen=True, slots=True)
class Mark:
    """Write this state into the app's record."""

    state: AppState


@dataclass(frozen=True, slots=True)
class Finished:
    """The migration has its ending as far as the operator is concerned; acknowledgements may be open."""


@dataclass(frozen=True, slots=True)
class Forget:
    """Both ends know the ending: the journal can go."""


Output = Journal | Send | Act | StopAct | SetTimer | ClearTimer | Mark | Finished | Forget
