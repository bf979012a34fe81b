//! The custom resources, their versions, defaults, conversion and validation.
