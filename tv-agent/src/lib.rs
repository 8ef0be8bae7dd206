//! tv-agent: a transparent egress interceptor that swaps the caller's token for the provider's own.
//!
//! Read `connection.rs` for the life of a connection and `exchange.rs` for the life of a request.
//! The modules below stand in the order in which a connection meets them; a stage imports only
//! earlier stages and the side modules (`cargo xtask tidy` checks it).

// Side modules: they import no stage.
pub mod addr;
pub mod class;
pub mod limits;
pub mod metrics;
pub mod secret;
pub mod sys;

// Stages, in order.
pub mod ca;
pub mod dial;
pub mod enter;
pub mod redirect;
pub mod token;
pub mod trust;
