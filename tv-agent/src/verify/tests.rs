//! Tokens of every bad form, each refused with a reason of its own.
