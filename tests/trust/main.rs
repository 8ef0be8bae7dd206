//! The CA in the stores of real systems and runtimes. Needs root.

mod install;
