//! Scenario files in, decisions out: the offline twin of the controller.
