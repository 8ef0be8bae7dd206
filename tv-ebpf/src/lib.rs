//! The contract between the kernel half and the agent, and the decisions that need no kernel to be tested.
//!
//! Who writes what, and who reads it:
//!
//! | map | agent | programs |
//! |---|---|---|
//! | [`abi::SETTINGS`] | writes on every policy change | read on every captured connect() |
//! | [`abi::DEADLINE`] | pushes on every second | read; past it the agent counts as absent |
//! | [`abi::PORTS`] | writes | read first on every connect() |
//! | [`abi::BYPASS`] | writes | read |
//! | [`abi::OWN`] | flags its own sockets by fd | read; no program writes it, so no workload can |
//! | [`abi::ORIGINS`] | - | connect writes; handover and getpeername read. Lives and dies with the socket |
//! | [`abi::TUPLES`] | takes (reads and deletes) after accept() | handover writes |
//! | [`abi::NETNS`] | writes as namespaces come and go | read for native IPv6 |
//! | [`abi::CAPTURE`] | writes | read with `capture: cidr` |
//! | [`abi::NAMES`] | writes | ingress reads |
//! | [`abi::CANDIDATES`] | writes what it looked up, removes | ingress writes, connect reads and prolongs |
//! | [`abi::UNSURE`], [`abi::WIDE`] | writes, removes | connect and ingress write, connect reads |
//! | [`abi::ASKED`] | - | connect and sendmsg write; ingress reads. Lives and dies with the socket |
//! | [`abi::COUNTERS`] | reads | every decision counts under its [`Reason`] |
#![no_std]

pub mod abi;
pub mod answer;
pub mod name;
pub mod verdict;

pub use abi::{ABI_VERSION, Record, Settings, TupleKey};
pub use verdict::Reason;
