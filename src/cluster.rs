//! The in-memory cluster state fed by watches, and its cheap snapshots.
