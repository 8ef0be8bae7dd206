//! The pure rules of this stage, for whoever plays them through without a network: the simulation.

pub use super::life::{Life, Lived, Unlived};
pub use super::pace::{Bucket, back_off};
pub use super::shared::plan;
