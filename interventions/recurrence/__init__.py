"""What recurrent models carry from token to token: read, compared, changed, resumed, attributed."""

from .changes import AblateState, AddState, PatchState, StateIntervention, state_changes
from .effects import StateEffects, integrated_state_effects, patched_state_effects, state_effects
from .reading import advance, read_state, resume, states
from .state import State
from .stepping import stepping

__all__ = [
    "AblateState",
    "AddState",
    "PatchState",
    "State",
    "StateEffects",
    "StateIntervention",
    "advance",
    "integrated_state_effects",
    "patched_state_effects",
    "read_state",
    "resume",
    "state_changes",
    "state_effects",
    "states",
    "stepping",
]
