"""How much attention goes where, per layer and head, and what an intervention changes of it."""
