//! Pure disruption decisions: candidates, budgets, consolidation, drift, emptiness.
