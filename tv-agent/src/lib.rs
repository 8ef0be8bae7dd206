//! tv-agent: a transparent egress interceptor that swaps the caller's token for the provider's own.
//!
//! Read `connection.rs` for the life of a connection and `exchange.rs` for the life of a request.
//! The modules below stand in the order in which a connection meets them; a stage imports only
//! earlier stages and the side modules (`cargo xtask tidy` checks it).

// Side modules: they import no stage.
pub mod addr;
pub mod audit;
pub mod body;
pub mod candidates;
pub mod class;
pub mod clock;
pub mod confine;
pub mod diag;
pub mod encode;
pub mod files;
pub mod flows;
pub mod https;
pub mod limits;
pub mod metrics;
pub mod netns;
pub mod oidc;
pub mod phase;
pub mod places;
pub mod replay;
pub mod secret;
pub mod sys;
pub mod trace_context;
pub mod traces;

// Stages, in order.
pub mod dial;
pub mod redirect;
pub mod accept;
pub mod workload;
pub mod strays;
pub mod kubernetes;
pub mod trust;
pub mod policy;
pub mod hello;
pub mod decide;
pub mod tunnel;
pub mod ca;
pub mod verify;
pub mod sign;
pub mod token;
pub mod inject;
pub mod upstream;
pub mod terminate;
pub mod respond;
pub mod snapshot;

// The two scripts.
pub mod exchange;
pub mod connection;

// What puts them together, and what people ask for.
pub mod config;
pub mod agent;
pub mod local;
pub mod control;
pub mod page;
pub mod admin;
pub mod webhook;
pub mod wire;
pub mod data_path;
pub mod warden;
pub mod handover;
pub mod enter;
pub mod cli;
pub mod commands;
