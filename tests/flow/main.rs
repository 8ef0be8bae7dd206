//! The whole agent in process over loopback, between hostile clients, a vault and origins; one file per behaviour.

mod backpressure;
mod bodies;
mod connections;
mod credentials;
mod foreign;
mod grpc;
mod inject;
mod keys;
mod kinds;
mod origin;
mod policy;
mod protocols;
mod provider;
mod purge;
mod reload;
mod secrets;
mod shared;
mod signer;
mod steps;
mod storm;
mod tunnels;
mod upgrades;
mod vault;
mod verify;
mod workloads;
