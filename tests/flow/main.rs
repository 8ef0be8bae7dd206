//! The whole agent in process over loopback, between hostile clients, a vault and origins; one file per behaviour.

mod credentials;
mod policy;
mod protocols;
mod vault;
