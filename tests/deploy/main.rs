//! What is deployed: the chart as Helm renders it, the plain manifests, the unit; one file per topic.

mod alerts;
mod manifests;
mod support;
mod unit;
mod values;
mod webhook;
