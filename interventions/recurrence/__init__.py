"""What recurrent models carry from token to token: read, compared, changed, resumed, attributed."""

from .changes import AblateState, AddState, PatchState, StateIntervention, state_changes
from .reading import advance, read_state, resume, states
from .state import State
from .stepping import stepping

__all__ = [
    "AblateState",
    "AddState",
    "PatchState",
    "State",
    "StateIntervention",
    "advance",
    "read_state",
    "resume",
    "state_changes",
    "states",
    "stepping",
]
