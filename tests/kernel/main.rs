//! The programs on the real kernel: each test in a network namespace and a cgroup of its own, with a workload
//! (`tv-probe`) inside the cgroup and a small agent that only accepts and looks origins up.

mod counters;
mod faults;
mod floor;
mod identity;
mod kernel_log;
mod lifecycle;
mod liveness;
mod names;
mod neighbours;
mod passage;
mod redirected;
mod sockets;
mod succession;
mod udp;
mod world;
