//! The real binary, real clients, the real kernel; one file per behaviour. Everything around it is `World`.

mod happy_path;
mod refusals;
