"""Everything that touches a forward pass: sites, dictionaries, interventions."""
