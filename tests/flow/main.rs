//! The whole agent in process over loopback, between hostile clients, a vault and origins; one file per behaviour.

mod backpressure;
mod bodies;
mod connections;
mod credentials;
mod foreign;
mod grpc;
mod inject;
mod keys;
mod origin;
mod policy;
mod protocols;
mod purge;
mod reload;
mod secrets;
mod upgrades;
mod vault;
