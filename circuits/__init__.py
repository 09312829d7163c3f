"""Everything that is a graph: effects, edges, circuits, and how good they are."""
